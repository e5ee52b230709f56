"""Images and video: from a request's parts to embeddings in place of placeholder tokens."""
