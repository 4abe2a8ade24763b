"""Work that several cores share: kernels that let the interpreter's lock go, each on a part that no other touches."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from os import cpu_count

import torch

_helpers = ThreadPoolExecutor(max_workers=cpu_count() or 1, thread_name_prefix="kernels")


def share_out(cores: int, count: int, least: int, work: Callable[[int, int], object]) -> None:
    """Call `work(first, last)` on parts of 0 … `count`, of at least `least`, on at most so many cores."""
    shares = max(1, min(cores, count // least))
    bounds = [count * share // shares for share in range(shares + 1)]
    futures = [_helpers.submit(work, *bounds[share : share + 2]) for share in range(1, shares)]
    try:
        work(*bounds[:2])
    finally:
        for future in futures:  # whatever happens, no share may be left at work
            future.result()


@contextmanager
def torch_on_one_core() -> Iterator[None]:
    """Leave the other cores to kernels: torch's own threads go on spinning for a while when they have nothing to do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
