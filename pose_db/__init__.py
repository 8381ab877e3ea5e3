"""Text to pose: keypoints, the bundled database, its index, retrieval and drawing. Knows nothing of ComfyUI."""
