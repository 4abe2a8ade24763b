"""What the update guard costs a session where it has nothing to do: its step against the same without a guard."""

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.measuring import Figure, in_turn, write
from optserve_server.optimizers import build
from optserve_server.optimizers.fused import FixedPhi
from optserve_server.sessions.awake import Awake
from optserve_server.sessions.guard_options import GuardOptions
from optserve_server.sessions.layout import lay_out
from optserve_server.sessions.pages import Arena, StateMemory
from optserve_server.sessions.plan import Plan, ServedVersion
from optserve_server.sessions.steps import StepGradients

SHAPES = {
    1_500: [("w", (20, 60)), ("b", (300,))],
    1_000_000: [("w", (1000, 400)), ("b", (1000,)), ("v", (599, 1000))],
}


def main() -> None:
    torch.set_num_threads(1)  # as the server does
    small, large = SHAPES
    figures = [guarded_step("lstm", small, rounds=3000), guarded_step("hierarchical", large, rounds=15)]
    write("guarding", figures)


def guarded_step(kind: str, coordinates: int, rounds: int) -> Figure:
    optimizer = build({"kind": kind})
    phi = FixedPhi(optimizer.initial_phi(torch.Generator().manual_seed(0)))
    version = ServedVersion(kind, 1, "0" * 64, optimizer, phi)
    guarded, plain = (session(version, coordinates, guard) for guard in (GuardOptions(max_update_rms=1e30), None))
    gradients = np.random.default_rng(0).normal(size=coordinates).astype(np.float32)

    def stepper(awake: Awake) -> Callable[[], None]:
        def step() -> None:
            sent = StepGradients(awake.layout.complete, "float32", 1.0)
            sent.bits[:] = gradients
            awake.take(sent, awake.observe(sent))
            assert not awake.guard_notes

        return step

    ours, peer = in_turn(stepper(guarded), stepper(plain), rounds=rounds, warm_up=rounds // 5)
    return Figure(f"step of {coordinates:,}, {kind}", "guarded", "without", ours, peer, at_most=1.1)


def session(version: ServedVersion, coordinates: int, guard: GuardOptions | None) -> Awake:
    memory = StateMemory(1 << 32)
    arena = Arena(len(version.optimizer.features), memory)
    layout = lay_out(SHAPES[coordinates], coordinates)
    return Awake(version, version.optimizer, layout, Plan(guard=guard), arena, memory)


if __name__ == "__main__":
    main()
