"""The demo's training loop: one small classifier, any optimizer."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optserve_server.tasks.digits import digits

LEARNING_RATES = tuple(10 ** (exponent / 2) for exponent in range(-6, 3))  # 0.001 … 10, half a decade apart
BATCH_SIZE = 128

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Curve:
    """Training losses of one optimizer, `[seeds, steps + 1]`, on all training images, θ_0 first.

    `accuracy` is the mean share of the unseen images classified rightly at the end; `seconds_per_step` the mean time of
    the optimizer's `step()` alone.
    """

    label: str
    losses: Tensor
    accuracy: float
    seconds_per_step: float

    @property
    def final_loss(self) -> float:
        """The mean over seeds at the end; a run that diverged makes it infinite."""
        return self.losses[:, -1].mean().nan_to_num(nan=float("inf")).item()


def train(label: str, make_optimizer: MakeOptimizer, *, steps: int, seeds: Sequence[int]) -> Curve:
    """Train the classifier once a seed; the seed decides θ_0 and the minibatches, the same for every optimizer.

    The classifier learns the half of the digits that no optimizer was meta-trained on; the other half tests it.
    """
    images, labels = digits("held-out")
    unseen_images, unseen_labels = digits("train")
    losses, right, seconds = torch.zeros(len(seeds), steps + 1), 0.0, 0.0
    for row, seed in enumerate(seeds):
        model = classifier(seed)
        optimizer = make_optimizer(model)
        generator = torch.Generator().manual_seed(seed)
        for step in range(steps):
            losses[row, step] = _loss(model, images, labels)
            batch = torch.randint(len(images), (BATCH_SIZE,), generator=generator)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            start = time.perf_counter()
            optimizer.step(loss.item)
            seconds += time.perf_counter() - start
        losses[row, steps] = _loss(model, images, labels)
        right += (model(unseen_images).argmax(dim=1) == unseen_labels).float().mean().item()
    return Curve(label, losses, right / len(seeds), seconds / (len(seeds) * steps))


def tuned(
    name: str,
    torch_class: type[torch.optim.Optimizer],
    *,
    steps: int,
    seeds: Sequence[int],
    advance: Callable[[], None],
) -> Curve:
    """The best curve, by final loss, over `LEARNING_RATES`; `advance` is called after each rate."""
    curves = []
    for lr in LEARNING_RATES:
        curves.append(
            train(
                f"{name}, lr {lr:.2g}",
                lambda model, lr=lr: torch_class(model.parameters(), lr=lr),  # type: ignore[misc, call-arg]
                steps=steps,
                seeds=seeds,
            )
        )
        advance()
    return min(curves, key=lambda curve: curve.final_loss)


def classifier(seed: int) -> nn.Module:
    """64 – 20 – 10 with sigmoids, 1,510 coordinates, PyTorch's own initial values."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 20), nn.Sigmoid(), nn.Linear(20, 10))


def _loss(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return nn.functional.cross_entropy(model(images), labels).item()
