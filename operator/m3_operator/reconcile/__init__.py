"""The cycle of one object: snapshot, decide, act, tell."""
