"""Other tools side by side with vit-export, each in a Python environment of its own."""
