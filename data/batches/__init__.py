"""Which clips there are, and batches of them; batches of streams of frames."""
