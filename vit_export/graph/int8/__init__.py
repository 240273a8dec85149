"""Conversion of a graph to INT8."""
