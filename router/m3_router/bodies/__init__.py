"""What clients and workers say, read lazily and passed on as it is: requests, answers, and their dialects."""
