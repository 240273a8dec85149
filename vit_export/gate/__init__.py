"""Comparison of an artifact with its float64 reference."""
