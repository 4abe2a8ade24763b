"""Evaluation: learned optimizers on held-out tasks, against baselines at their best learning rates."""
