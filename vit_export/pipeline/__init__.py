"""One file per door: the order of its stages."""
