"""optserve for PyTorch: `RemoteOptimizer` is a `torch.optim.Optimizer` whose updates come from a server."""

from optserve.torch.optimizer import RemoteOptimizer

__all__ = ["RemoteOptimizer"]
