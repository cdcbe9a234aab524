"""What can be learned: a folder for each `config.task`."""
