"""Training of one step, and what protects the earlier categories meanwhile."""
