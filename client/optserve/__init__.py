"""optserve: learned optimizers as a service. This package is what a training loop installs."""
