"""Conversion of an fp32 artifact to a narrower precision."""
