"""Conversations: messages checked, rendered by the checkpoint's template, and thinking split from what comes back."""
