"""Run every benchmark: `python -m benchmarks`."""

from benchmarks import authorisation, durability, evolution, imports, metatraining, steps, waking
from benchmarks.optimizers import steps as optimizer_steps

for benchmark in (imports, steps, durability, waking, authorisation, metatraining, evolution, optimizer_steps):
    benchmark.main()
