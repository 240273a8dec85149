"""Fine-tuning on a folder of images or a digits CSV."""
