"""Sessions that are stepped as a whole: their memory, and what else is at work."""

import asyncio
import time
import weakref

import numpy as np
import pytest
import torch
from tests.sessions.conftest import new_session, opened
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optserve_server.sessions import state
from optserve_server.sessions.errors import StateTooLarge
from optserve_server.sessions.steps import StepGradients

KINDS = pytest.mark.parametrize("kind", ["hierarchical", "small_fc"])
PARAMETERS = [("w", (300, 7)), ("b", (7,)), ("s", ())]
MEBIBYTE = 1 << 20


def take(session, steps, seed=0):
    generator = np.random.default_rng(seed)
    for _ in range(steps):
        updates = take_one(session.awake, generator)
    return updates


def take_one(awake, generator, skip=()):
    sent = StepGradients(awake.layout.select(skip), awake.dtype, 1.0 / (1 + awake.next_step))
    sent.bits[:] = generator.normal(size=len(sent.bits))
    return awake.take(sent, awake.observe(sent))


class Peak(TorchDispatchMode):
    """The most bytes that tensors made meanwhile have taken together, but for an arena's."""

    def __init__(self, arena):
        super().__init__()
        self.alive = {arena.pages.untyped_storage().data_ptr(): 0}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage):
        if storage.data_ptr() not in self.alive:
            self.alive[storage.data_ptr()] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, storage.data_ptr())
            self.peak = max(self.peak, sum(self.alive.values()))


@KINDS
def test_other_sessions_and_pages_used_before_change_no_bit(tmp_path, kind):
    async def test():
        async with opened(tmp_path / "alone") as store:
            alone = await new_session(store, kind, PARAMETERS)
            expected = take(alone, 6)
            digest = state.digest(alone.awake)
        async with opened(tmp_path / "among") as store:
            former = [await new_session(store, kind, PARAMETERS) for _ in range(3)]
            for session in former:
                take(session, 2, seed=9)
            await store.delete(former[0].id, {former[0].owner})
            among = await new_session(store, kind, PARAMETERS)
            for _ in range(5):
                take(former[1], 1, seed=3)
            generator = np.random.default_rng(0)
            for _ in range(6):
                updates = take_one(among.awake, generator)
                take(former[2], 1, seed=4)
            assert np.array_equal(updates, expected)
            assert state.digest(among.awake) == digest

    asyncio.run(test())


@pytest.mark.parametrize(("kind", "mebibytes"), [("hierarchical", 50), ("small_fc", 200)])
def test_a_session_that_does_not_fit_is_refused_before_anything_is_there(run, kind, mebibytes):
    """With what its steps take: a million coordinates are 16 MB of hidden state, and up to 250 MB beside it."""

    async def test(store):
        kept = await new_session(store, kind, PARAMETERS)
        used = store.memory.used
        with pytest.raises(StateTooLarge) as refused:
            await new_session(store, kind, [("w", (1000, 1000))])
        assert refused.value.fields["bytes_needed"] > mebibytes * MEBIBYTE
        assert (store.memory.used, len(store)) == (used, 1)
        assert store.directory.sessions() == [kept.id]
        take(kept, 2)

    run(test, memory=40 * MEBIBYTE)


@KINDS
@pytest.mark.parametrize("skip", [(), ("b",)])
def test_a_step_takes_what_is_reserved(run, kind, skip):
    async def test(store):
        session = await new_session(store, kind, [("w", (500, 600)), ("v", (100_000,)), ("b", ())])
        awake, generator = session.awake, np.random.default_rng(0)
        take_one(awake, generator, skip)
        with Peak(awake.arena) as peak:
            take_one(awake, generator, skip)
        assert 5 * MEBIBYTE < peak.peak < store.memory.used - awake.pages.numel() * awake.arena.page_bytes

    run(test)


def test_arrays_count_where_memory_is_limited(run):
    """Those of `small_fc` are larger than its pages where no tensor is a matrix."""

    async def test(store):
        taken = []
        for parameter in (("v", (2048,)), ("w", (32, 64))):
            before = store.memory.used
            session = await new_session(store, "small_fc", [parameter])
            taken.append(store.memory.used - before - session.layout.own_bytes)
        assert taken[0] - taken[1] == 4 * 3 * (2048 - 32 - 64)

    run(test)


@KINDS
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_goes_its_way(run, kind, dtype):
    async def test(store):
        one = await new_session(store, kind, PARAMETERS, dtype=dtype)
        sent = StepGradients(one.layout.complete, dtype, 1.0)
        sent.bits[:] = np.frombuffer(np.float16(0.5).tobytes(), sent.bits.dtype)[0] if dtype == "float16" else 0x3F00
        assert one.awake.take(sent, one.awake.observe(sent)).dtype == sent.bits.dtype

    run(test)


def test_many_tensors_leave_the_event_loop_free(run):
    """Where a torch module steps them."""

    async def test(store):
        session = await new_session(store, "small_fc", [(str(number), (2,)) for number in range(500)])
        step = asyncio.create_task(store.turns.run(session, lambda awake: time.sleep(0.3)))
        start = time.perf_counter()
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert time.perf_counter() - start < 0.2
        await step

    run(test)
