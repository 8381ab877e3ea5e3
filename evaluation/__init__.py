"""How good pictures are: poses, likeness, prompts kept; measured as the papers do, and reported."""
