"""The studies, a file for every WHAT: the question, what is run, and how it is judged."""
