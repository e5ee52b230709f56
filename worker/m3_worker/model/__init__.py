"""MiniMax-M3: what its checkpoint says, its weights, its cache, and the mathematics of one step."""
