"""CATER: its TFDS builder. `data.recorded` loads what it built."""
