"""Run every benchmark: `python -m benchmarks`."""

from benchmarks import durability, imports, metatraining, steps

for benchmark in (imports, steps, durability, metatraining):
    benchmark.main()
