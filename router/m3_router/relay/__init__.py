"""The way of one request, from its head to the settled bill, and what is asked of workers beside it."""
