"""Many jobs of one workflow on one or many ComfyUI servers; plain Python, so that the command starts at once."""
