"""Video files: checks and decodes them."""
