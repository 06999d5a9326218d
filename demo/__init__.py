"""The emoji world: a small real base model, and the pictures of a concept that it has never seen."""
