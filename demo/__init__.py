"""A small world of characters, and a base model that draws it."""
