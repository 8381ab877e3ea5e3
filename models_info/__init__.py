"""Every weight file the pack can use, where ComfyUI looks for it, and what to say when it is not there."""
