"""What the studies share: clips, networks, and training of short runs whose programs are compiled
once."""
