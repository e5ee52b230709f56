"""One model over several processes: who holds which part, and what they say to each other."""
