"""Experts of running groups: what workers say of them, window by window, and what they are told."""
