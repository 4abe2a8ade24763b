"""Run every benchmark: `python -m benchmarks`."""

from benchmarks import authorisation, durability, evolution, guarding, imports, metatraining, perceptrons, steps, waking
from benchmarks.optimizers import steps as optimizer_steps

of_sessions = (steps, guarding, durability, waking, authorisation)
for benchmark in (imports, *of_sessions, metatraining, evolution, perceptrons, optimizer_steps):
    benchmark.main()
