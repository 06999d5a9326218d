"""A UNet with concepts: edited projections, controlled and recorded attention."""
