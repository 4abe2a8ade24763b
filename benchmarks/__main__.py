"""Run every benchmark: `python -m benchmarks`."""

from benchmarks import authorisation, durability, imports, metatraining, steps

for benchmark in (imports, steps, durability, authorisation, metatraining):
    benchmark.main()
