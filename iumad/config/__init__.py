"""Params files: their schema, how they are read, and what makes two runs the same experiment."""
