"""Runs on disk: training or loading them, their rows, and what follows from them."""
