"""Inside an unroll nothing is read from the device, and nothing comes from the host.

The tensors here have shapes and no numbers, so that reading one fails. The CPU stands for the device; a tensor that is
made without a word about where lies on another, whose tensors cannot be computed with those of this one. (Where PyTorch
is built without CUDA, it is only tensors of the CPU that autograd can go back through.)
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)

from optserve_server.metatraining import estimators, recipes
from optserve_server.metatraining.distribution import reparametrise
from optserve_server.metatraining.estimators import Window
from optserve_server.metatraining.guards import Guard
from optserve_server.metatraining.imitation import Teacher
from optserve_server.metatraining.trajectories import Group, draw_groups
from optserve_server.optimizers import LEARNED, Phi, steppers
from optserve_server.tasks import families

ESTIMATORS: list[dict[str, Any]] = [
    {"second_order": True},
    {"second_order": False},
    {"estimator": "es"},
    {"estimator": "pes"},
    {"estimator": "nres"},
]


def gradients_at_once(guard: Guard, meta_losses: Tensor, phi: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As `Guard.gradients`, which then asks whether a derivative has overflown."""
    return dict(zip(phi, torch.autograd.grad(meta_losses.sum(), list(phi.values())), strict=True))


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the kernel, which is for CPUs alone."""
    monkeypatch.setattr(steppers, "_fits_kernel", lambda *_: False)
    monkeypatch.setattr(Guard, "gradients", gradients_at_once)


def unroll_without_numbers(**changes: Any) -> None:
    parsed = recipes.parse(
        {
            "name": "tiny",
            "architecture": {"kind": "hierarchical"},
            "tasks": [{"family": "quadratic"}],
            "unroll": {"steps": 2},
            "augmentation": {"coordinate_scaling": 1.0},
            **changes,
        }
    )
    draw_groups(parsed.tasks, [1], parsed.optimizer(), torch.Generator(), "train")  # what is loaded has numbers
    phi = parsed.optimizer().initial_phi(torch.Generator())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.device("cuda"):
        take_window(parsed, {name: mode.from_tensor(weight) for name, weight in phi.items()})


def take_window(parsed: recipes.Recipe, phi: Phi) -> None:
    optimizer, generator, estimator = parsed.optimizer(), torch.Generator(), estimators.build(parsed)
    (group,) = draw_groups(parsed.tasks, [2], optimizer, generator, "train")
    reparametrise(group, parsed.augmentation, generator)
    group = estimator.begin(group, optimizer, phi, generator)
    group.teacher = Teacher.of(group.state.coordinates, 0.1)
    found = estimator.estimate(optimizer, phi, group, Window(0, 2, 2, imitation=1.0), generator)
    assert {each.device.type for each in (*found.gradients.values(), found.meta_loss, group.theta)} == {"cpu"}


@pytest.mark.parametrize("gradient", [{"estimator": "nres"}, {"second_order": True}], ids=str)
@pytest.mark.parametrize("family", families().usable)
def test_every_family(family: str, gradient: dict[str, Any]) -> None:
    unroll_without_numbers(tasks=[{"family": family}], gradient=gradient)


@pytest.mark.parametrize("gradient", ESTIMATORS, ids=str)
@pytest.mark.parametrize("architecture", LEARNED)
def test_every_architecture(architecture: str, gradient: dict[str, Any]) -> None:
    unroll_without_numbers(architecture={"kind": architecture}, gradient=gradient)


@pytest.mark.parametrize(
    ("misstep", "error"),
    [
        (lambda losses: losses * losses.sum().item(), DataDependentOutputException),
        (lambda losses: losses * losses.tolist()[0], DataDependentOutputException),
        (lambda losses: losses + losses[losses > 0].sum(), DynamicOutputShapeException),
        (lambda losses: losses + losses.nonzero().sum(), DynamicOutputShapeException),
        (lambda losses: losses * torch.ones(2), FakeTensorDeviceMismatchError),
    ],
    ids=["item", "tolist", "mask", "nonzero", "from the host"],
)
def test_what_would_wait_is_found(misstep: Any, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    losses = Group.losses
    monkeypatch.setattr(Group, "losses", lambda *arguments: misstep(losses(*arguments)))
    with pytest.raises(error):
        unroll_without_numbers(gradient={"second_order": True})
