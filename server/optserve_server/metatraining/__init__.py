"""Meta-training: L(φ), the estimators of its gradient, and the outer loop, from a recipe."""
