"""Conversion of an fp32 artifact to FP16, BF16 or INT8: calibration, trials, repair search."""
