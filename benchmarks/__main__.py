"""Run every benchmark: `python -m benchmarks`."""

from benchmarks import authorisation, durability, evolution, imports, metatraining, steps, waking

for benchmark in (imports, steps, durability, waking, authorisation, metatraining, evolution):
    benchmark.main()
