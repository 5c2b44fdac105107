"""Frozen features and the cache that holds them."""
