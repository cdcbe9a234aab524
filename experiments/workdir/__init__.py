"""What a run leaves in its workdir, and finds there again."""
