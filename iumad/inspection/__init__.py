"""Models for the line: one file with a threshold, predictions on files, learning a new product."""
