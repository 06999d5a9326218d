"""Train Concept: from pictures to a concept."""
