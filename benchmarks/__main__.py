"""Run every benchmark: `python -m benchmarks`."""

from benchmarks import authorisation, durability, evolution, imports, metatraining, steps

for benchmark in (imports, steps, durability, authorisation, metatraining, evolution):
    benchmark.main()
