"""Who takes part in an evaluation: learned optimizers, tuned baselines, and optimizers at their defaults."""

import hashlib
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch

from optserve.wire.evaluations import Curves, Loss
from optserve_server.evaluation import baselines, fingerprints, inner_loops, plans
from optserve_server.evaluation.inner_loops import Measured
from optserve_server.evaluation.plans import Plan, PlanError, PlannedTask
from optserve_server.evaluation.rules import BASELINES, Rule
from optserve_server.evaluation.summaries import Losses, divergence, quantile, to_json
from optserve_server.evaluation.third_party import ThirdParty
from optserve_server.optimizers import Optimizer, Phi, weights


class Competitor(Protocol):
    """One of those that are evaluated."""

    @property
    def name(self) -> str:
        """That results have for it."""
        ...

    def fingerprints(self, plan: Plan, task: PlannedTask, device: torch.device) -> list[str]:
        """Of its cells on one task, at each T of the plan."""
        ...

    def curves(self, plan: Plan, task: PlannedTask, device: torch.device) -> Generator[int, None, list[Curves]]:
        """Its curves on one task, at each T of the plan; yields steps made. They do not know the task's place."""
        ...


def of(plan: Plan) -> list[Competitor]:
    """The baselines and the untuned optimizers of a plan; those that it calls `optimizers` are for others to read."""
    return [*map(Baseline, plan.baselines), *map(Untuned, plan.untuned)]


@dataclass(frozen=True, slots=True)
class Entrant:
    """A learned optimizer that is evaluated, under the name that the plan has for it."""

    name: str
    optimizer: Optimizer
    phi: Phi
    sha256: str
    """Of the weights file."""

    @classmethod
    def read(cls, name: str, data: bytes) -> Self:
        """From the bytes of a weights file.

        Raises:
            PlanError: of an optimizer designed by hand, or no weights file.
        """
        try:
            optimizer, phi, _ = weights.decode(data)
        except ValueError as error:
            raise PlanError("optimizers", f"{name} is no weights file: {error}") from error
        if not optimizer.learned:
            raise PlanError("optimizers", f"{name} is designed by hand; name it in `baselines`, where it is tuned")
        return cls(name, optimizer, phi, hashlib.sha256(data).hexdigest())

    def fingerprints(self, plan: Plan, task: PlannedTask, device: torch.device) -> list[str]:
        """They depend on the weights file."""
        return fingerprints.of_weights(plan, task, self.optimizer, self.sha256, device)

    def curves(self, plan: Plan, task: PlannedTask, device: torch.device) -> Generator[int, None, list[Curves]]:
        """There is nothing to tune."""
        phi = {name: weight.to(device) for name, weight in self.phi.items()}
        measured = yield from _at_every_horizon(plan, task, Rule(self.optimizer, phi), 1.0, device)
        return [_once(self.name, one, horizon) for one, horizon in zip(measured, plan.horizons, strict=True)]


@dataclass(frozen=True, slots=True)
class Baseline:
    """A hand-designed optimizer at its best learning rate."""

    name: str

    def fingerprints(self, plan: Plan, task: PlannedTask, device: torch.device) -> list[str]:
        """They depend on how it is tuned."""
        return fingerprints.of_baseline(plan, task, self.name, device)

    def curves(self, plan: Plan, task: PlannedTask, device: torch.device) -> Generator[int, None, list[Curves]]:
        """At the best learning rate for each T."""
        tuned = yield from baselines.tune(task, self.name, plan, device)
        return [
            replace(
                _summarised(self.name, horizon, one.losses, one.held_out),
                baseline=True,
                learning_rate=one.learning_rate,
                learning_rates=one.tried,
                held_out_learning_rate=one.held_out_rate,
                best_held_out=_list(one.best_held_out),
            )
            for one, horizon in zip(tuned, plan.horizons, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Untuned:
    """A baseline, or an optimizer of `third_party`, as it is published: one run, at its defaults."""

    kind: str

    @property
    def name(self) -> str:
        """Not that of the tuned one, which may be there too."""
        return plans.untuned_name(self.kind)

    def fingerprints(self, plan: Plan, task: PlannedTask, device: torch.device) -> list[str]:
        """They depend on the version of the package that it is of."""
        return fingerprints.of_untuned(plan, task, self.kind, device)

    def curves(self, plan: Plan, task: PlannedTask, device: torch.device) -> Generator[int, None, list[Curves]]:
        """At the default."""
        rule = BASELINES.get(self.kind) or Rule(ThirdParty(self.kind))
        measured = yield from _at_every_horizon(plan, task, rule, rule.default, device)
        rate = rule.default if self.kind in BASELINES else None
        return [
            replace(_once(self.name, one, horizon), untuned=True, learning_rate=rate)
            for one, horizon in zip(measured, plan.horizons, strict=True)
        ]


def _at_every_horizon(
    plan: Plan, task: PlannedTask, rule: Rule, rate: float, device: torch.device
) -> Generator[int, None, list[Measured]]:
    """At one rate; the horizons are points of one inner loop, unless the rule knows T."""
    measured: list[Measured] = []
    for horizons in [(one,) for one in plan.horizons] if rule.knows_horizon else [plan.horizons]:
        measured += yield from inner_loops.run(task, rule, plan, horizons, (rate,), device)
    return measured


def _once(name: str, measured: Measured, horizon: int) -> Curves:
    """Of what was run at one rate."""
    held_out = None if measured.held_out is None else measured.held_out[0]
    return _summarised(name, horizon, measured.losses[0], held_out)


def _summarised(name: str, horizon: int, losses: Losses, held_out: Losses | None) -> Curves:
    """`losses` are `[seeds, points]`, `held_out` are `[seeds]`."""
    return Curves(
        task=0,
        optimizer=name,
        baseline=False,
        learning_rate=None,
        learning_rates=[],
        steps=inner_loops.points(horizon).tolist(),
        losses=[to_json(seed) for seed in losses],
        median=to_json(quantile(losses, 0.5)),
        lower_quartile=to_json(quantile(losses, 0.25)),
        upper_quartile=to_json(quantile(losses, 0.75)),
        divergence=divergence(losses[:, 0], losses[:, -1]),
        held_out=_list(held_out),
    )


def _list(losses: Losses | None) -> list[Loss]:
    return [] if losses is None else to_json(losses)
