"""Sessions: a training loop's hidden state h_t in pages, the order of its steps, its checkpoints. Knows no HTTP."""
