"""optserve for PyTorch: a `torch.optim.Optimizer` whose updates come from a server, and one that computes them here."""

try:
    from optserve.torch.local import LocalOptimizer
    from optserve.torch.optimizer import RemoteOptimizer
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError("optserve.torch needs PyTorch: pip install 'optserve[torch]'", name="torch") from error

__all__ = ["LocalOptimizer", "RemoteOptimizer"]
