"""What an artist sees: one module a family, calls downward only."""
