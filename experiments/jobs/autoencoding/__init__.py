"""The other job: a stream of frames, painted while it comes."""
