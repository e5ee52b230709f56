"""Who waits for a place in a pool, and who goes next. Pure: time comes in, tickets go out."""
