"""Tiny videos and archives for smoke tests."""
