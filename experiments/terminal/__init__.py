"""The command line, and output in the terminal."""
