"""A crew: processes that share out the trajectories under way, each on a core of its own.

An outer step's windows are short, and most of what one takes is Python; so threads do not help. Each process has every
so-many-th place of the pool, whose generators are its own. φ goes out, estimates come back, and are put together in the
order of the places: the same bits with any number of processes.

A message is a training checkpoint's tree, behind its length; nothing in it is executed.
"""

import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, BinaryIO

import torch

from optserve_server.metatraining import recipes, training_checkpoints
from optserve_server.metatraining.distribution import Generators
from optserve_server.metatraining.estimators import MetaGradient
from optserve_server.metatraining.recipes import Recipe
from optserve_server.metatraining.training_checkpoints import State
from optserve_server.metatraining.trajectory_pool import Estimate, TrajectoryPool
from optserve_server.optimizers import Phi

_LENGTH = struct.Struct("<Q")
_CPU = torch.device("cpu")


class CrewError(RuntimeError):
    """A process of the crew has failed; the message ends with what it wrote last."""


class Crew:
    """A pool whose trajectories are in `processes` processes."""

    def __init__(self, recipe: Recipe, processes: int) -> None:
        self._advance, self._trajectories = recipe.unroll.advance, recipe.unroll.trajectories
        command = [sys.executable, "-m", __name__]
        self._members = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(processes)
        ]
        described = recipe.model_dump(mode="json")
        self._ask(
            [{"recipe": described, "share": share, "shares": processes} for share in range(processes)],
        )

    def windows(self, outer_step: int, phi: Phi, longest: int) -> list[Estimate]:
        """Take the outer step's trajectories one window further, all at a time."""
        request = {"outer_step": outer_step, "phi": dict(phi), "longest": longest}
        answers = self._ask([{"windows": request}] * len(self._members))
        found = [_estimate(one) for answer in answers for one in answer]
        first = (outer_step - 1) * self._advance
        return sorted(found, key=lambda one: (one.place - first) % self._trajectories)

    def clear(self) -> None:
        """Give all trajectories up."""
        self._ask([{"clear": None}] * len(self._members))

    def to_state(self) -> list[State]:
        """What is in each place."""
        shares = [iter(answer) for answer in self._ask([{"to_state": None}] * len(self._members))]
        return [next(shares[place % len(shares)]) for place in range(self._trajectories)]

    def restore(self, state: Sequence[State]) -> None:
        """Go on with what was in each place."""
        processes = len(self._members)
        self._ask([{"restore": list(state[share::processes])} for share in range(processes)])

    def close(self) -> None:
        """End the processes."""
        for member in self._members:
            assert member.stdin is not None and member.stdout is not None
            member.stdin.close()
            member.stdout.close()
        for member in self._members:
            member.wait()

    def _ask(self, requests: Sequence[State]) -> list[Any]:
        """Ask every process, then hear what they say."""
        for member, request in zip(self._members, requests, strict=True):
            assert member.stdin is not None
            _write(member.stdin, request)
        answers = []
        for number, member in enumerate(self._members):
            assert member.stdout is not None
            answer = _read(member.stdout)
            if answer is None or "failed" in answer:
                self.close()
                what = "it has ended" if answer is None else answer["failed"]
                raise CrewError(f"process {number + 1} of {len(self._members)} of the meta-training: {what}")
            answers.append(answer["answer"])
        return answers


def _estimate(described: dict[str, Any]) -> Estimate:
    return Estimate(**{**described, "found": MetaGradient(**described["found"])})


def _described(estimate: Estimate) -> State:
    shallow = {field.name: getattr(estimate, field.name) for field in fields(estimate)}
    return {**shallow, "found": {field.name: getattr(estimate.found, field.name) for field in fields(estimate.found)}}


def _write(stream: BinaryIO | Any, tree: State) -> None:
    data = training_checkpoints.encode(tree)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def _read(stream: BinaryIO | Any) -> Any:
    """The next message; None at the stream's end."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    data = stream.read(*_LENGTH.unpack(head))
    return training_checkpoints.decode(data, _CPU)


def _answer(pool: TrajectoryPool, request: dict[str, Any]) -> State:
    ((what, given),) = request.items()
    if what == "windows":
        return [_described(estimate) for estimate in pool.windows(**given)]
    if what == "restore":
        return pool.restore(given)
    return getattr(pool, what)()


def main() -> None:
    """A process of the crew: answers on its standard output until its standard input ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not come between
    torch.set_num_threads(1)
    begun = _read(requests)
    recipe = recipes.parse(begun["recipe"])
    generators = Generators.seeded(recipe.seed, _CPU)
    pool = TrajectoryPool(recipe, recipe.optimizer(), generators, begun["share"], begun["shares"])
    _write(answers, {"answer": None})
    while (request := _read(requests)) is not None:
        try:
            answer = {"answer": _answer(pool, request)}
        except Exception as error:
            _write(answers, {"failed": f"{type(error).__name__}: {error}"})
            raise
        _write(answers, answer)


if __name__ == "__main__":
    main()
