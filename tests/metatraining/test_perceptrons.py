"""The kernel of perceptrons computes what the family's own loss and autograd compute."""

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from optserve_server import tasks
from optserve_server.metatraining import perceptrons
from optserve_server.metatraining.admission import LARGEST
from optserve_server.metatraining.differentiation import losses_and_gradients
from optserve_server.metatraining.particles import ParticleGroup
from optserve_server.metatraining.perceptrons import perceptron_of
from optserve_server.metatraining.trajectories import Group
from optserve_server.optimizers import HiddenState
from optserve_server.tasks.base import Batch, coordinates
from optserve_server.tasks.networks import ACTIVATIONS, Activation, Error, Perceptron

TASKS = 3
# One unit and no vector's worth of them, whole vectors and one more; behind a narrow layer's weights come others' soon.
SIZES = [(1, 1), (5, 2), (1, 1, 1), (4, 3, 3), (2, 5, 1, 3), (16, 16, 2), (17, 33, 4)]
ROWS = [1, 7, 16, 33]
STATE = HiddenState(torch.zeros(1, 1), {})


def draw(
    form: Perceptron, rows: int, *, particles: int = 1, scaled: bool = False, seed: int = 0
) -> tuple[Group, Batch]:
    """θ of entries that saturate no softmax: of a cross-entropy near 0 float32 has no gradient to compare."""
    generator = torch.Generator().manual_seed(seed)
    family: Any = SimpleNamespace(perceptron=form, loss=lambda theta, _, batch: form.loss(theta, batch))
    n = sum((fan_in + 1) * fan_out for fan_in, fan_out in zip(form.sizes, form.sizes[1:], strict=False))
    theta = 0.7 * torch.randn(particles * TASKS, n, generator=generator)
    scales = (torch.rand(TASKS, n, generator=generator) - 0.5).exp() if scaled else None
    inputs = torch.randn(TASKS, rows, form.sizes[0], generator=generator)
    targets = torch.randn(TASKS, rows, form.sizes[-1], generator=generator)
    if form.error == "cross-entropy":
        targets = torch.randint(form.sizes[-1], (TASKS, rows), generator=generator)
    batch = {form.inputs: inputs, form.targets: targets}
    if particles == 1:
        return Group(0, family, {}, theta, STATE, scales), batch
    return ParticleGroup(0, family, {}, theta, STATE, scales, particles=particles, noise={}, sigma=1.0), batch


def plainly(group: Group, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    like = SimpleNamespace(**vars(group))
    like.scales = None if group.scales is None else group.scales.to(dtype)
    like.tasks = group.tasks
    theta = group.theta.to(dtype).requires_grad_()
    seen = {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}
    losses = type(group).losses(like, theta, seen)  # type: ignore[arg-type]
    (gradients,) = torch.autograd.grad(losses.sum(), theta)
    return losses.detach(), gradients


def error(found: Tensor, exact: Tensor) -> float:
    """The largest of any inner loop, in units of its largest number."""
    off, size = (each.double().flatten(1).abs().amax(dim=1) for each in (found - exact, exact))
    return float((off / size.clamp(min=1e-3)).max())


def check(group: Group, batch: Batch) -> None:
    """As near to float64 as a few times what float32 is by autograd."""
    form = perceptron_of(group, batch)
    assert form is not None
    found = perceptrons.losses_and_gradients(form, group, batch)
    exact, single = plainly(group, batch, torch.float64), plainly(group, batch, torch.float32)
    assert found[0].shape == exact[0].shape
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-5, atol=1e-6)
    assert error(found[1], exact[1]) < 1e-5 + 4 * error(single[1], exact[1])


@pytest.mark.parametrize("normalised", [False, True], ids=["", "normalised"])
@pytest.mark.parametrize("of", ["cross-entropy", "squared-error"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_the_loss_and_its_gradient(activation: Activation, of: Error, normalised: bool) -> None:
    for sizes, rows in product(SIZES, ROWS):
        check(*draw(Perceptron(sizes, activation, of, "x", "y", normalised), rows))


def test_particles_and_scales_are_those_of_their_task() -> None:
    form = Perceptron((3, 5, 2), "tanh", "cross-entropy", "x", "y")
    check(*draw(form, 6, scaled=True))
    check(*draw(form, 6, particles=4, scaled=True))
    check(*draw(form, 6, particles=4))


def test_inputs_may_be_the_targets_and_targets_may_lack_their_one_column() -> None:
    group, batch = draw(Perceptron((5, 3, 5), "tanh", "squared-error", "x", "x"), 6)
    check(group, {"x": torch.randn(TASKS, 6, 5, generator=torch.Generator().manual_seed(1))})
    group, batch = draw(Perceptron((5, 3, 1), "tanh", "squared-error", "x", "y"), 6)
    check(group, {**batch, "y": batch["y"][:, :, 0]})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("normalised", [False, True], ids=["", "normalised"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_that_is_not_finite_shows_it_and_spoils_no_other(
    activation: Activation, normalised: bool, bad: float
) -> None:
    """Of the second of three inner loops that one core computes."""
    form = Perceptron((4, 3, 2), activation, "cross-entropy", "x", "y", normalised)
    group, batch = draw(form, 7)
    expected = perceptrons.losses_and_gradients(form, group, batch)
    group.theta[1] = bad * group.theta[1].sign()
    found = perceptrons.losses_and_gradients(form, group, batch)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])
    assert not found[0][1].abs() < LARGEST


def test_cores_share_the_inner_loops_and_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptrons, "_LEAST_WEIGHTS", 1)
    form = Perceptron((6, 5, 3), "gelu", "cross-entropy", "x", "y")
    group, batch = draw(form, 9, particles=5)
    one = perceptrons.losses_and_gradients(form, group, batch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    four = perceptrons.losses_and_gradients(form, group, batch)
    assert all(map(torch.equal, one, four))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("digits-mlp", {}),
        ("tabular-mlp", {}),
        ("tabular-mlp", {"data": "diabetes"}),
        ("clusters-mlp", {}),
        ("teacher-mlp", {}),
        ("digits-autoencoder", {}),
        ("synthetic-mlp", {"normalised": True}),
        ("synthetic-mlp", {"data": "autoencoder", "rows": 20}),
        ("synthetic-mlp", {"data": "teacher-values"}),
    ],
)
def test_the_families_of_perceptrons_go_through_it(
    name: str, parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    family, generator = tasks.build(name, parameters), torch.Generator().manual_seed(0)
    theta, data = family.initial(generator, TASKS), family.sample(generator, TASKS, "train")
    assert theta.shape == (TASKS, coordinates(family))
    group = Group(0, family, data, theta, STATE)
    batch = group.draw_batch(generator)
    check(group, batch)
    went = []
    monkeypatch.setattr(
        perceptrons, "losses_and_gradients", lambda *arguments: went.append(arguments) or (theta, theta)
    )
    losses_and_gradients(group, batch)
    assert len(went) == 1


def test_what_it_cannot_compute_goes_another_way() -> None:
    form = Perceptron((4, 3, 2), "tanh", "squared-error", "x", "y")
    group, batch = draw(form, 5)
    assert perceptron_of(group, batch) is form
    assert perceptron_of(group, {**batch, "y": batch["y"].double()}) is None
    double, _ = draw(form, 5)
    double.theta = double.theta.double()
    assert perceptron_of(double, batch) is None
    found = losses_and_gradients(double, {name: value.double() for name, value in batch.items()})
    assert found[1].dtype == torch.float64
    other = tasks.build("quadratic", {})
    quadratic = Group(0, other, {}, torch.zeros(TASKS, 10), STATE)
    assert perceptron_of(quadratic, {}) is None
