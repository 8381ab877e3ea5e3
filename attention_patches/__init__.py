"""What changes a model: one module a mechanism, its maths in plain torch and then the small class that hooks it in."""
