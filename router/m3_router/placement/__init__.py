"""Who gets a request: prefixes, the index of who holds them, pools and the choice."""
