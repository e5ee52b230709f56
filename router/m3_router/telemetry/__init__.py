"""What is told about requests: counts, spans, decisions, lines of the log."""
