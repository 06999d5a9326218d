"""ComfyUI nodes: what people drag. The method itself is in `perfusion_core`."""
