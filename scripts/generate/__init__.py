"""Generators of committed files: workflows, blueprints, pictures, screenshots."""
