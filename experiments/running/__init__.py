"""A run of a job, whichever it is."""
