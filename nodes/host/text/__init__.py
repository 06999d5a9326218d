"""Text on its way to an encoding, and what an encoding knows of itself."""
