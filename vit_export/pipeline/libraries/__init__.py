"""Models of other libraries as sources of an export."""
