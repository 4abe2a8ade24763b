"""What a worker does while it waits for its first piece of work, so that it need not begin that with imports."""

import torch

from optserve_server.metatraining import recipes
from optserve_server.metatraining.outer_loop import OuterLoop

_SMALLEST = {
    "name": "warm-up",
    "architecture": {"kind": "lstm", "hidden_size": 1, "layers": 1},
    "tasks": [{"family": "digits-mlp", "parameters": {"hidden_sizes": [1], "batch_size": 1}}],
    "unroll": {"steps": 1},
    "meta_optimizer": {"outer_steps": 1, "tasks_per_outer_step": 1},
}


def warm_up(device: torch.device) -> None:
    """Make one outer step of the smallest recipe: it imports, loads and starts whatever others need too."""
    for _ in OuterLoop(recipes.parse(_SMALLEST), device=device):
        pass
