"""Task families with a known answer, for as long as a test runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from optserve.wire.evaluations import Curves, EvaluationResult
from optserve_server import tasks
from optserve_server.evaluation import plans
from optserve_server.evaluation.competitors import Entrant
from optserve_server.evaluation.evaluate import Progress, evaluate, to_end
from optserve_server.evaluation.plans import Plan
from optserve_server.optimizers import build, weights


@dataclass(frozen=True)
class Bowl:
    """f(θ) = curvature · ‖θ‖²/2 + slope · Σθ + noise, which gradient descent of rate 1/curvature solves in a step."""

    name: ClassVar[str] = "bowl"
    description: ClassVar[str] = "a bowl"

    curvature: float = 1.0
    slope: float = 0.0
    noise: float = 0.0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (2, 1), "bias": (1,)}

    def sample(self, generator: torch.Generator, tasks: int, split: str) -> dict[str, Tensor]:
        return {"number": torch.arange(tasks)}

    def initial(self, generator: torch.Generator, tasks: int) -> Tensor:
        return torch.randn(tasks, 3, generator=generator) + 5

    def batch(self, generator: torch.Generator, task_data: dict[str, Tensor], tasks: int) -> dict[str, Tensor]:
        return {"noise": torch.randn(tasks, generator=generator)} if self.noise else {}

    def loss(self, theta: Tensor, task: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        loss = self.curvature * theta.square().sum() / 2 + self.slope * theta.sum()
        return loss + self.noise * batch["noise"] if self.noise else loss


@pytest.fixture(autouse=True)
def bowl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks.families().usable, Bowl.name, Bowl)
    tasks._adapter.cache_clear()


def plan(*families: Any, **changes: Any) -> Plan:
    """A small plan over families, each a name or a task."""
    chosen = [{"family": one} if isinstance(one, str) else one for one in families]
    length = {} if "horizons" in changes else {"steps": 5}
    return plans.parse({"optimizers": ["learned"], "baselines": [], **length, "seeds": 3, "tasks": chosen, **changes})


def entrant(name: str = "learned", **architecture: Any) -> Entrant:
    """A learned optimizer with its random φ_0."""
    optimizer = build({"kind": "rnnprop", "hidden_size": 3, "layers": 1, **architecture})
    return Entrant.read(name, weights.encode(optimizer, optimizer.initial_phi(torch.Generator().manual_seed(0))))


def carried_out(
    plan: Plan,
    *entrants: Entrant,
    finished: tuple[Curves, ...] = (),
    tell: Callable[[Progress], object] = lambda _: None,
) -> EvaluationResult:
    """The result; `tell` gets all progress on the way."""
    return to_end(evaluate(plan, entrants or [entrant()], finished), tell)
