"""A UNet with concepts applied: edited projections, and attention that is controlled and recorded."""
