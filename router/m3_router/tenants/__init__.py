"""Who may ask, and how much: keys, plans, quotas, rate limits, and the files that say so."""
