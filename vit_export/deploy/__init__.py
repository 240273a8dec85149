"""Folders that are ready to use where a model is deployed; one file per target."""
