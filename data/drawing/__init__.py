"""Draws scenes of solids."""
