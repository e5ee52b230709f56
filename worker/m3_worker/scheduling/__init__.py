"""What runs in the next step and on whose pages: decisions, all without torch and without a clock of their own."""
