"""What runs in a pod, by engine: one module for each, and `launch` for what they have in common."""
