"""What workers, routers and GPUs say of themselves, scraped: values, and how they are read and kept."""
