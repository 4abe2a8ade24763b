"""optserve for JAX: `remote_optimizer` is an Optax `GradientTransformation` whose updates come from a server."""

try:
    from optserve.optax.transformation import RemoteState, RemoteTransformation, remote_optimizer
except ModuleNotFoundError as error:
    if error.name not in ("jax", "optax"):
        raise
    raise ModuleNotFoundError(
        "optserve.optax needs JAX and Optax: pip install 'optserve[optax]'", name=error.name
    ) from error

__all__ = ["RemoteState", "RemoteTransformation", "remote_optimizer"]
