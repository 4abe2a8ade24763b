"""optserve for PyTorch: `RemoteOptimizer` is a `torch.optim.Optimizer` whose updates come from a server."""

try:
    from optserve.torch.optimizer import RemoteOptimizer
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError("optserve.torch needs PyTorch: pip install 'optserve[torch]'", name="torch") from error

__all__ = ["RemoteOptimizer"]
