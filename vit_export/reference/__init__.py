"""What torch computes in float64, and how far its own float32, float16 and bfloat16 are from it."""
