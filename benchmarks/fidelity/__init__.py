"""Likeness to the pictures and faithfulness to the prompt."""
