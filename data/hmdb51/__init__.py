"""HMDB51: its TFDS builder. `data.recorded` loads what it built."""
