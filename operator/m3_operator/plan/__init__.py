"""Decisions: what is observed and what is wanted in, ordered actions with their reasons out. Pure, no clock."""
