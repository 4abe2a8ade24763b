"""f and ∇f as a CUDA graph.

Where there is no GPU a graph of PyTorch's operations stands for it, which like a CUDA graph knows addresses alone: it
does the same operations on the same memory again.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from optserve_server import tasks
from optserve_server.metatraining import captured, differentiation, perceptrons
from optserve_server.metatraining.captured import Captured
from optserve_server.metatraining.differentiation import losses_and_gradients
from optserve_server.metatraining.trajectories import Group
from optserve_server.optimizers import HiddenState

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


class Operations(TorchDispatchMode):
    """A graph: what is run under it can be run again, from the same memory to the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.recorded.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.recorded:
            again = func(*args, **kwargs)
            for old, new in zip(*(torch.utils._pytree.tree_leaves(each) for each in (result, again)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Stream:
    def wait_stream(self, other: "Stream") -> None:
        """All is in order."""


@contextmanager
def capturing(graph: Operations) -> Iterator[None]:
    with graph:
        yield


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Operations)
    monkeypatch.setattr(torch.cuda, "graph", capturing)


def polynomial(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return (x * x + y).sum(dim=1), 2 * x


def numbers(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, generator=generator), torch.randn(3, 1, generator=generator)


def test_each_call_sees_what_it_is_given(without_gpu: None) -> None:
    found = Captured(polynomial, numbers(0))
    for seed in (1, 2, 1):
        assert all(map(torch.equal, found(*numbers(seed)), polynomial(*numbers(seed))))


def test_results_outlast_the_next_call_and_arguments_are_left_alone(without_gpu: None) -> None:
    given = numbers(1)
    found = Captured(polynomial, given)
    first = found(*given)
    found(*numbers(2))
    assert all(map(torch.equal, first, polynomial(*numbers(1))))
    assert all(map(torch.equal, given, numbers(1)))
    first[1].fill_(0.0)
    assert torch.equal(found(*given)[1], polynomial(*given)[1])


def draw(name: str, generator: torch.Generator) -> Group:
    family = tasks.build(name, {})
    theta, data = family.initial(generator, 3), family.sample(generator, 3, "train")
    return Group(0, family, data, theta, HiddenState(torch.zeros(1, 1), {}))


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second evaluation is traced, of perceptrons too, which have a kernel."""
    monkeypatch.setattr(perceptrons, "perceptron_of", lambda _group, _batch: None)
    monkeypatch.setattr(differentiation, "TRACED_AFTER", 2)
    monkeypatch.setattr(differentiation, "_asked", type(differentiation._asked)())
    monkeypatch.setattr(differentiation, "_traced", {})


@pytest.mark.parametrize("name", ["quadratic", "digits-mlp", "markov-rnn"])
def test_what_is_traced_of_a_family_can_be_captured(name: str, soon: None, without_gpu: None) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        group = draw(name, generator)
        losses_and_gradients(group, group.draw_batch(generator))
    (traced,) = differentiation._traced.values()
    batch = group.draw_batch(generator)
    found = captured.Captured(traced, [group.theta, *group.task_data.values(), *batch.values()])
    for _ in range(2):
        other = draw(name, generator)
        batch = other.draw_batch(generator)
        expected = losses_and_gradients(other, batch)
        assert all(map(torch.equal, found(other.theta, *other.task_data.values(), *batch.values()), expected))


@ON_GPU
@pytest.mark.parametrize("name", list(tasks.families().usable))
def test_captured_on_a_gpu_it_is_what_it_was(name: str, soon: None) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    for number in range(4):
        group = draw(name, generator)
        batch = group.draw_batch(generator)
        found = losses_and_gradients(group, batch)
        theta = group.theta.clone().requires_grad_()
        losses = group.losses(theta, batch)
        (gradients,) = torch.autograd.grad(losses.sum(), theta)
        torch.testing.assert_close(found, (losses.detach(), gradients), rtol=1e-5, atol=1e-6)
        assert all(isinstance(each, Captured) for each in differentiation._traced.values())
        assert len(differentiation._traced) == (number >= 1)
