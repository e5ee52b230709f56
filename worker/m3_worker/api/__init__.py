"""The HTTP API: one dialect a file. OpenAI's completions and chat, its models, and `/tokenize` as vLLM has it."""
