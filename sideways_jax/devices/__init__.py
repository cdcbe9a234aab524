"""Who holds what on a mesh, and how it travels; nothing here knows of learning."""
