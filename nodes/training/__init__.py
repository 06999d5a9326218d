"""The node Train Concept, which trains a concept from pictures."""
