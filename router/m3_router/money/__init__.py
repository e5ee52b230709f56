"""What a request costs, and that it is settled once: prices, estimates, bills, the ledger and its journal, sums."""
