"""Run every benchmark: `python -m benchmarks`."""

from benchmarks import imports, steps

for benchmark in (imports, steps):
    benchmark.main()
