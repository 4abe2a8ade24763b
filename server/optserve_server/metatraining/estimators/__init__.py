"""Estimators of ∇_φL, one file each."""
