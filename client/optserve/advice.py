"""What the logger `optserve` tells a training loop: mistakes that raise nothing, and what the update guard does."""

import logging
from collections.abc import Sequence

from optserve.wire.bodies import OptimizerInfo
from optserve.wire.guard import BACK, HELD, GuardNote

log = logging.getLogger("optserve")

_REASONS = {
    "non-finite": "the optimizer's update was not finite",
    "update-rms": "the optimizer's update was too large",
    "loss-rise": "the loss has been far above its best for long",
}


class Advice:
    """Mistakes that cost much and raise nothing, where a learned optimizer is used otherwise than it was meta-trained.

    Each is mentioned once.

    Args:
        horizon: how many steps the loop has planned, where it said so.
        with_loss: the call that tells the optimizer the loss.
    """

    def __init__(self, horizon: int | None, with_loss: str) -> None:
        self._horizon = horizon
        self._with_loss = with_loss
        self._given: set[str] = set()

    def of_rate(self, optimizer: OptimizerInfo, lr: float) -> None:
        """At the beginning: a learned optimizer needs no rate."""
        if optimizer.learned and lr != 1:
            self.give(
                f"lr = {lr:g} multiplies the updates of {optimizer.name!r}, which has learned its own step sizes; "
                "leave lr out"
            )

    def of_step(self, optimizer: OptimizerInfo, step: int, loss: float | None) -> None:
        """Before step t = `step`."""
        if loss is None and "loss" in optimizer.uses:
            self.give(f"{optimizer.name!r} does much better where it sees the loss: call {self._with_loss}")
        if self._horizon is not None and step >= self._horizon and "horizon" in optimizer.uses:
            self.give(
                f"the {self._horizon:,} steps of the declared horizon are over, and {optimizer.name!r} takes small "
                "steps from now on; declare a longer horizon, rather too long than too short"
            )

    def give(self, advice: str) -> None:
        """Tell it, unless it has been told."""
        if advice not in self._given:
            self._given.add(advice)
            log.warning("%s", advice)


def tell_of_guard(session: str, step: int, notes: Sequence[GuardNote]) -> None:
    """Warn of each thing that the update guard did at a step of the session of that id."""
    for note in notes:
        if note.event != HELD:
            log.warning("step %d of session %s: %s", step, session, _sentence(note))


def _sentence(note: GuardNote) -> str:
    """What the update guard did, for people."""
    more = f" and {note.count - len(note.tensors)} more" if note.count > len(note.tensors) else ""
    who = ", ".join(note.tensors) + more
    afresh = "; hidden state that was not finite began again at 0" if note.afresh else ""
    if note.event == BACK:
        return f"the optimizer's own updates are back for {who} (after {note.reason}{afresh})"
    return f"the update guard steps by Adam for now: {who} ({_REASONS.get(note.reason, note.reason)}{afresh})"
