"""Run every benchmark: `python -m benchmarks`."""

from benchmarks import (
    authorisation,
    durability,
    evolution,
    guarding,
    imports,
    metatraining,
    perceptrons,
    steps,
    waking,
    wire,
)
from benchmarks.optimizers import steps as optimizer_steps

of_sessions = (steps, wire, guarding, durability, waking, authorisation)
for benchmark in (imports, *of_sessions, metatraining, evolution, perceptrons, optimizer_steps):
    benchmark.main()
