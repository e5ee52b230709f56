"""What users may say in the custom resources, and what they read in their status: models, one aspect a file."""
