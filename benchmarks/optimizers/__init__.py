"""The optimizers that are served, beside each other and beside others: figures, and the tables of README and docs."""
