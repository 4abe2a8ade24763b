"""The update guard once more, in plain NumPy and float64, from docs/guard.md alone: one object a tensor, one a loss."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Event = tuple[str, str]


def mean(values: list[float], decay: float) -> float:
    """Weighted mean of all values, the weights falling by `decay` from the newest to the oldest."""
    weights = decay ** np.arange(len(values))[::-1]
    return float(np.dot(weights, values) / weights.sum())


@dataclass
class Losses:
    patience: int
    losses: list[float] = field(default_factory=list)
    below: list[float] = field(default_factory=list)
    best: float = np.inf
    risen: int = 0
    halvings: int = 0  # 0: no fallback
    sunk: int = 0
    stayed: int = 0

    def step(self, loss: float | None) -> None:
        if loss is not None:
            if self.losses:
                self.below.append(2 * max(0.0, mean(self.losses, 0.9) - loss))
            self.losses.append(loss)
            self.best = min(self.best, mean(self.losses, 0.9))
        above = self._is_above()
        if not self.halvings:
            if loss is not None:
                self.risen = self.risen + 1 if above else 0
            if self.risen >= self.patience:
                self.halvings, self.sunk, self.stayed = 1, 0, 0
            return
        self.stayed += 1
        if above:
            self.sunk, self.risen = 0, self.risen + 1
            self.halvings = min(10, self.halvings + (self.risen % self.patience == 0))
        elif self.sunk == self.patience:
            self.halvings = self.risen = 0
            return
        else:
            self.sunk, self.risen = self.sunk + 1, 0
        if self.stayed == 4 * self.patience:
            self.best, self.risen, self.stayed = mean(self.losses, 0.9), 0, 0

    def _is_above(self) -> bool:
        if not self.losses:
            return False
        deviation = mean(self.below, 0.9) if self.below else 0.0
        margin = 2 * deviation + 0.1 * abs(self.losses[0] - self.best) + 1e-6 * abs(self.best)
        return mean(self.losses, 0.9) > self.best + margin


@dataclass
class Tensor:
    limit: float
    patience: int
    accepted: list[float] = field(default_factory=list)
    reason: str = ""
    calm: int = 0
    seen: list[Array] = field(default_factory=list)  # gradients since it fell back

    def step(self, wanted: Array, gradient: Array, halvings: int) -> tuple[Array, Event | None]:
        rms = float(np.sqrt(np.mean(wanted**2)))
        cause = "non-finite" if not np.isfinite(wanted).all() else "update-rms" if rms > self.limit else ""
        before, self.reason = self.reason, self._reason(cause, halvings)
        self.calm = 0 if cause or not before else self.calm + 1
        if not self.reason:
            self.accepted.append(rms)
            return wanted, ("back", before) if before else None
        self.seen = [*self.seen, gradient] if before else [gradient]
        event = "held" if self.reason == before else "fallback"
        return self._fallback(halvings), (event, self.reason)

    def _reason(self, cause: str, halvings: int) -> str:
        own = self.reason in ("non-finite", "update-rms")
        if cause:
            return self.reason if own else cause
        if own and self.calm < self.patience:
            return self.reason
        return "loss-rise" if halvings else ""

    def _fallback(self, halvings: int) -> Array:
        gradients = np.clip(np.array(self.seen), -1e15, 1e15)
        ages = np.arange(len(gradients))[::-1, None]
        terms = ((0.9, gradients), (0.999, gradients**2))
        m, v = ((beta**ages * values).sum(0) / (beta**ages).sum() for beta, values in terms)
        direction = m / (np.sqrt(v) + 1e-12)
        magnitude = mean(self.accepted, 0.99) if self.accepted else 1e-3
        magnitude = min(magnitude * 0.5**halvings, self.limit)
        rms = np.sqrt(np.mean(direction**2))
        return -direction * (magnitude if magnitude * rms <= self.limit else self.limit / rms)
