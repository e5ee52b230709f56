"""The status of each kind: counts, groups, conditions, as one value. Pure, and built last."""
