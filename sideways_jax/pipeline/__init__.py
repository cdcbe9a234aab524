"""The execution on several devices: modules spread over a mesh."""
