"""Pytrees, names that users choose from, and programs as JAX traces them."""
