"""What a loaded model is: its family, its identity, its weights on their device."""
