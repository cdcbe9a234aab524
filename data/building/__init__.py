"""Builds UCF101, HMDB51 and CATER from the files that were downloaded, once."""
