"""The demo's world: what its judges can tell, and what its base can draw."""
