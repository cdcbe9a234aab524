"""The executions on one device."""
