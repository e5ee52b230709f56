"""The workers of a pool: which there are, how each feels, and whether it is trusted."""
