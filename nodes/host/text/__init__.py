"""Tokenization and encoding of prompts, and the notes that encodings carry."""
