"""Whether a model fits the GPUs of a group, and what there is then room for: arithmetic in bytes and tokens. Pure."""
