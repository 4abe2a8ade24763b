"""An optimizer's step on a GPU: compiled as one graph, so that it is a few launches and not some hundred.

Always from the first step on, and never by how often it has been asked for: compiled sums are rounded in another order,
and a run that is resumed has to come to the same bits as one that was not.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

_MOST_FORMS = 1 << 20  # Dynamo's own limit ends the run, for a graph that must be whole


@lru_cache(maxsize=64)
def compiled(step: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """`step` as one graph, compiled anew for each form of what it is given; that takes seconds."""
    import torch._dynamo  # as much again as to import torch, which only a GPU is worth

    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = _MOST_FORMS
    whole: Callable[..., Any] = torch.compile(step, fullgraph=True, dynamic=False, backend=backend)
    return whole
