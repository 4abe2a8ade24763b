"""optserve: learned optimizers as a service. This package is what a training loop installs.

    client = optserve.Client("http://127.0.0.1:8000")
    session = client.sessions.create("lstm", {"w": (64, 20), "b": (20,)})
    updates = session.step({"w": gradient_of_w, "b": gradient_of_b})

For PyTorch there is `optserve.torch.RemoteOptimizer`. What is exported here is loaded at its first use, so that
`import optserve` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optserve import errors
    from optserve.client import AsyncClient, Client
    from optserve.session import AsyncSession, Session

    __version__: str

__all__ = ["AsyncClient", "AsyncSession", "Client", "Session", "__version__", "errors"]

_MODULES = {"AsyncClient": "client", "Client": "client", "AsyncSession": "session", "Session": "session"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("optserve")
    if name == "errors":
        return importlib.import_module("optserve.errors")
    if name in _MODULES:
        return getattr(importlib.import_module(f"optserve.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'optserve' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
