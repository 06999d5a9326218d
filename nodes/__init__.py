"""The ComfyUI nodes of the pack. The method itself is implemented in `perfusion_core`."""
