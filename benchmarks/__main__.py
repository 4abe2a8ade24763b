"""Run every benchmark: `python -m benchmarks`."""

from benchmarks import imports, metatraining, steps

for benchmark in (imports, steps, metatraining):
    benchmark.main()
