"""A small world of characters, and a base model that generates pictures of it."""
