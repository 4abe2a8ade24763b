"""A window stays on its device, and the host waits for no number of it.

The default device holds no numbers here, so that a tensor made without a word about where, which on a machine with a
GPU would not lie there, cannot be computed with.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from optserve_server.metatraining import estimators, particles, recipes
from optserve_server.metatraining.distribution import reparametrise
from optserve_server.metatraining.estimators import MetaGradient, Window
from optserve_server.metatraining.imitation import Teacher
from optserve_server.metatraining.trajectories import draw_groups
from optserve_server.optimizers import LEARNED, steppers
from optserve_server.tasks import families

DEVICE = torch.device("cpu")
WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default)
ESTIMATORS = [{"second_order": True}, {"second_order": False}, {"estimator": "es"}, {"estimator": "pes"}]


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the kernels, which are for CPUs alone."""
    monkeypatch.setattr(steppers, "_fits_kernel", lambda *_: False)
    for module in (steppers, particles):
        monkeypatch.setattr(module, "fits_hierarchy", lambda *_: False)


class Waits(TorchDispatchMode):
    """Counts the times at which a host would wait for its device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += func in WAITING
        return func(*args, **(kwargs or {}))


def window(**changes: Any) -> tuple[MetaGradient, int]:
    """The meta-gradient of one window, and how often the host would have waited in it."""
    parsed = recipes.parse(
        {
            "name": "tiny",
            "architecture": {"kind": "hierarchical"},
            "tasks": [{"family": "quadratic"}],
            "unroll": {"steps": 2},
            "meta_loss": {"kind": "log", "relative": True, "weights": [1.0, 2.0]},
            "augmentation": {"coordinate_scaling": 1.0},
            **changes,
        }
    )
    optimizer, generator, estimator = parsed.optimizer(), torch.Generator().manual_seed(0), estimators.build(parsed)
    phi = optimizer.initial_phi(torch.Generator().manual_seed(0))
    with torch.device("meta"):
        (group,) = draw_groups(parsed.tasks, [2], optimizer, generator, "train")
        reparametrise(group, parsed.augmentation, generator)
        group = estimator.begin(group, optimizer, phi, generator)
        group.teacher = Teacher.of(group.state.coordinates, 0.1)
        with Waits() as waits:
            found = estimator.estimate(optimizer, phi, group, Window(0, 2, 2, imitation=1.0), generator)
    return found, waits.count


def check(**changes: Any) -> None:
    found, waits = window(**changes)
    tensors = [*found.gradients.values(), found.meta_loss, found.loss, found.non_finite, found.lost]
    assert {tensor.device for tensor in tensors} == {DEVICE}
    # Backpropagation asks once a window whether a derivative has overflown.
    assert waits == ("estimator" not in changes["gradient"])


@pytest.mark.parametrize("gradient", [{"estimator": "nres"}, {"second_order": True}], ids=["nres", "backpropagation"])
@pytest.mark.parametrize("family", families().usable)
def test_every_family(family: str, gradient: dict[str, Any]) -> None:
    check(tasks=[{"family": family}], gradient=gradient)


@pytest.mark.parametrize("gradient", ESTIMATORS, ids=str)
@pytest.mark.parametrize("architecture", LEARNED)
def test_every_architecture(architecture: str, gradient: dict[str, Any]) -> None:
    check(architecture={"kind": architecture}, gradient=gradient)
