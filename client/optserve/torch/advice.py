"""What the logger `optserve` tells a loop, once, that uses a learned optimizer otherwise than it was meta-trained."""

import logging

from optserve.wire.bodies import OptimizerInfo

log = logging.getLogger("optserve")


class Advice:
    """Mistakes that cost much and raise nothing; each is mentioned once.

    Args:
        horizon: how many steps the loop has planned, where it said so.
    """

    def __init__(self, horizon: int | None) -> None:
        self._horizon = horizon
        self._given: set[str] = set()

    def of_rate(self, optimizer: OptimizerInfo, lr: float) -> None:
        """At the beginning: a learned optimizer needs no rate."""
        if optimizer.learned and lr != 1:
            self._give(
                f"lr = {lr:g} multiplies the updates of {optimizer.name!r}, which has learned its own step sizes; "
                "leave lr out"
            )

    def of_step(self, optimizer: OptimizerInfo, step: int, loss: float | None) -> None:
        """Before step t = `step`."""
        if loss is None and "loss" in optimizer.uses:
            self._give(f"{optimizer.name!r} does much better where it sees the loss: call step(loss=loss)")
        if self._horizon is not None and step >= self._horizon and "horizon" in optimizer.uses:
            self._give(
                f"the {self._horizon:,} steps of the declared horizon are over, and {optimizer.name!r} takes small "
                "steps from now on; declare a longer horizon, rather too long than too short"
            )

    def _give(self, advice: str) -> None:
        if advice not in self._given:
            self._given.add(advice)
            log.warning("%s", advice)
