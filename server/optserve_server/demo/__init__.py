"""`optserve demo`: a digits classifier trained by the served optimizer, beside tuned Adam and SGD in plain PyTorch."""
