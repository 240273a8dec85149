"""Tensor names of the libraries that write Vision Transformer checkpoints.

To add a library, read `torchvision.py` (the shortest table) and `rules.py` (what a table may say),
write a table in a new file, add it to `LAYOUTS` in `recognise.py`, and compare a tiny model of the
library with ours in `tests/checkpoint/layouts/`. Nothing else has to change.
"""
