"""What only a GPU can show; without one these tests are skipped."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from optserve_server.metatraining import differentiation, recipes, trajectories
from optserve_server.metatraining.captured import Captured
from optserve_server.metatraining.estimators import antithetic, backpropagation
from optserve_server.metatraining.outer_loop import OuterLoop, Progress
from optserve_server.optimizers import LEARNED, steppers

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]

EVERY = pytest.mark.parametrize("architecture", LEARNED)
ESTIMATORS = pytest.mark.parametrize(
    "gradient",
    [{"second_order": True}, {"second_order": False}, {"estimator": "es"}, {"estimator": "pes"}, {"estimator": "nres"}],
    ids=str,
)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second evaluation of f and its gradient is captured."""
    monkeypatch.setattr(differentiation, "TRACED_AFTER", 2)
    monkeypatch.setattr(differentiation, "_asked", type(differentiation._asked)())
    monkeypatch.setattr(differentiation, "_traced", {})


def outer_steps(architecture: str, gradient: dict[str, Any]) -> Iterator[Progress]:
    parsed = recipes.parse(
        {
            "name": "tiny",
            "architecture": {"kind": architecture},
            "tasks": [{"family": "digits-mlp", "parameters": {"hidden_sizes": [4], "batch_size": 8}}],
            "unroll": {"steps": 8, "truncation": 4},
            "gradient": gradient,
            "meta_optimizer": {"outer_steps": 6, "tasks_per_outer_step": 3},
            "checkpoints": {"every": 100},
        }
    )
    return iter(OuterLoop(parsed, device="cuda"))


@EVERY
@ESTIMATORS
def test_nothing_waits_inside_an_unroll(
    architecture: str, gradient: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = outer_steps(architecture, gradient)
    for _ in range(4):  # compiles, and captures
        next(steps)
    if not gradient.get("second_order"):
        assert [type(each) for each in differentiation._traced.values()] == [Captured]

    def watched(*arguments: Any, **named: Any) -> Tensor:
        with refusing_to_wait():
            return trajectories.unroll(*arguments, **named)

    for room in (antithetic, backpropagation):
        monkeypatch.setattr(room, "unroll", watched)
    next(steps)


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@EVERY
@ESTIMATORS
def test_compiled_and_captured_it_is_what_it_was(
    architecture: str, gradient: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = next(outer_steps(architecture, gradient))
    monkeypatch.setattr(differentiation, "TRACED_AFTER", 10**9)
    monkeypatch.setattr(differentiation, "_traced", {})
    monkeypatch.setattr(steppers, "compiled", lambda step: step)
    expected = next(outer_steps(architecture, gradient))
    assert found.meta_loss == pytest.approx(expected.meta_loss, rel=1e-4)
    assert found.meta_gradient_norm == pytest.approx(expected.meta_gradient_norm, rel=1e-3)


@EVERY
def test_when_it_is_captured_changes_no_bit(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is resumed captures later than one that was not."""
    sooner = list(outer_steps(architecture, {"second_order": False}))
    monkeypatch.setattr(differentiation, "TRACED_AFTER", 10**9)
    monkeypatch.setattr(differentiation, "_traced", {})
    assert list(outer_steps(architecture, {"second_order": False})) == sooner
