"""Data sets that lie on disk, one module a layout."""
