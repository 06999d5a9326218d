"""What writes committed files: workflows, blueprints, pictures, screenshots."""
