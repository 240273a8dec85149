"""Images to pixel_values: decode, prepare, folders, digits CSV."""
