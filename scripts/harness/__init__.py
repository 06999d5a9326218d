"""Tools that drive a real ComfyUI from outside: its server, its page, graphs and workflows."""
