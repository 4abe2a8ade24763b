"""A crew: processes that share out the trajectories under way, each on a core of its own.

An outer step's windows are short, and most of what one takes is Python; so threads do not help. Each process has every
so-many-th place of the pool, whose generators are its own. φ goes out, estimates come back, and are put together in the
order of the places: the same bits with any number of processes.

A message is a training checkpoint's tree, behind its length; nothing in it is executed.
"""

import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from typing import IO, Any

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
    """A process of the crew has failed; the message says which and how."""


class CrewKilled(CrewError):
    """A process of the crew was killed, as the kernel does for want of memory: another attempt may go well."""


def crew_size(recipe: Recipe, processes: int) -> int:
    """How many of so many processes find work: an outer step has no more windows than it advances trajectories."""
    return min(processes, recipe.unroll.advance)


class Crew:
    """A pool whose trajectories are in `processes` processes of their own.

    They end with the process that has made them, whatever ends it: when it is gone there is nobody left at the other
    end of their standard input. Signals are its business alone.
    """

    def __init__(self, recipe: Recipe, processes: int) -> None:
        self._advance, self._trajectories = recipe.unroll.advance, recipe.unroll.trajectories
        command = [sys.executable, "-m", "optserve_server.metatraining.crew_member"]
        self._members = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
            for _ in range(processes)
        ]
        described = recipe.model_dump(mode="json")
        self._ask([{"recipe": described, "share": share, "shares": processes} for share in range(processes)])

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
        """End the processes; there is nothing that they have to finish."""
        for member in self._members:
            member.kill()
        for member in self._members:
            member.wait()
            for stream in (member.stdin, member.stdout):
                assert stream is not None
                with suppress(BrokenPipeError):  # of a request that one which was killed has not read
                    stream.close()

    def _ask(self, requests: Sequence[State]) -> list[Any]:
        """Ask every process, then hear what they say."""
        try:
            for member, request in zip(self._members, requests, strict=True):
                assert member.stdin is not None
                with suppress(BrokenPipeError):  # the answer tells, which does not come
                    _write(member.stdin, request)
            return [self._hear(number, member) for number, member in enumerate(self._members, start=1)]
        except BaseException:  # an answer is missing, so the next would be taken for it
            self.close()
            raise

    def _hear(self, number: int, member: "subprocess.Popen[bytes]") -> Any:
        assert member.stdout is not None
        answer, which = _read(member.stdout), f"process {number} of {len(self._members)} of the crew"
        if answer is None:
            code = member.wait()
            if code < 0:
                raise CrewKilled(f"{which} was killed by signal {-code}; 9 is often the kernel's, for want of memory")
            raise CrewError(f"{which} ended with code {code}; what it wrote last says why")
        if "failed" in answer:
            raise CrewError(f"{which}: {answer['failed']}")
        return answer["answer"]


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """A process of the crew: answers until there is nobody left who asks."""
    torch.set_num_threads(1)
    begun = _read(requests)
    if begun is None:
        return
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


def _answer(pool: TrajectoryPool, request: dict[str, Any]) -> State:
    ((what, given),) = request.items()
    if what == "windows":
        return [_described(estimate) for estimate in pool.windows(**given)]
    if what == "restore":
        return pool.restore(given)
    return getattr(pool, what)()


def _estimate(described: dict[str, Any]) -> Estimate:
    return Estimate(**{**described, "found": MetaGradient(**described["found"])})


def _described(estimate: Estimate) -> State:
    shallow = {field.name: getattr(estimate, field.name) for field in fields(estimate)}
    return {**shallow, "found": {field.name: getattr(estimate.found, field.name) for field in fields(estimate.found)}}


def _write(stream: IO[bytes], tree: State) -> None:
    data = training_checkpoints.encode(tree)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def _read(stream: IO[bytes]) -> Any:
    """The next message; None where the stream ends."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    return training_checkpoints.decode(data, _CPU) if len(data) == length else None
