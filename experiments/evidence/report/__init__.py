"""The page with all tables and pictures."""
