"""UCF101: its TFDS builder. `data.sets.recorded` loads what it built."""
