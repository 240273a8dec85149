"""Conversion of a graph to float16 or bfloat16."""
