"""Sessions that are stepped as a whole: their memory, and what else is at work."""

import asyncio
import time
import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optserve_server.optimizers import build
from optserve_server.sessions import state
from optserve_server.sessions.errors import StateTooLarge
from optserve_server.sessions.layout import lay_out
from optserve_server.sessions.pages import StateMemory
from optserve_server.sessions.plan import Plan, ServedVersion
from optserve_server.sessions.steps import StepGradients
from optserve_server.sessions.store import SessionStore

KINDS = pytest.mark.parametrize("kind", ["hierarchical", "small_fc"])
PARAMETERS = [("w", (300, 7)), ("b", (7,)), ("s", ())]
MEBIBYTE = 1 << 20


def version(kind):
    optimizer = build({"kind": kind})
    phi = {name: weight + 0.1 for name, weight in optimizer.initial_phi(torch.Generator().manual_seed(1)).items()}
    return ServedVersion(kind, 1, "a" * 64, optimizer, phi)


def store_with(memory=1 << 30):
    return SessionStore(StateMemory(memory))


def new_session(store, kind, parameters=PARAMETERS, **plan):
    return store.create(version(kind), lay_out(parameters, 10**9), Plan(**plan))


def take(session, steps, seed=0):
    generator = np.random.default_rng(seed)
    for _ in range(steps):
        updates = take_one(session.awake, generator)
    return updates


def take_one(awake, generator):
    sent = StepGradients(awake.layout.complete, awake.dtype, 1.0 / (1 + awake.next_step))
    sent.bits[:] = generator.normal(size=awake.layout.coordinates)
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
def test_other_sessions_and_pages_used_before_change_no_bit(kind):
    alone = new_session(store_with(), kind)
    expected = take(alone, 6)
    store = store_with()
    former = [new_session(store, kind) for _ in range(3)]
    for session in former:
        take(session, 2, seed=9)
    asyncio.run(store.delete(former[0].id, {former[0].owner}))
    among = new_session(store, kind)
    for _ in range(5):
        take(former[1], 1, seed=3)
    generator = np.random.default_rng(0)
    for _ in range(6):
        updates = take_one(among.awake, generator)
        take(former[2], 1, seed=4)
    assert np.array_equal(updates, expected)
    assert state.digest(among.awake) == state.digest(alone.awake)


@KINDS
def test_a_session_that_does_not_fit_is_refused_before_anything_is_there(kind):
    """With what its steps take: a million coordinates are 16 MB of hidden state, and some 250 MB beside it."""
    store = store_with(128 * MEBIBYTE)
    kept = new_session(store, kind)
    used = store.memory.used
    with pytest.raises(StateTooLarge) as refused:
        new_session(store, kind, [("w", (1000, 1000))])
    assert refused.value.fields["bytes_needed"] > 200 * MEBIBYTE
    assert (store.memory.used, len(store)) == (used, 1)
    take(kept, 2)


@KINDS
def test_a_step_takes_what_is_reserved(kind):
    store = store_with()
    session = new_session(store, kind, [("w", (500, 600)), ("v", (100_000,))])
    take(session, 1)
    with Peak(session.awake.arena) as peak:
        take(session, 1)
    assert 10 * MEBIBYTE < peak.peak < store.memory.used - session.awake.pages.numel() * session.awake.arena.page_bytes


def test_arrays_count_where_memory_is_limited():
    """Those of `small_fc` are larger than its pages where no tensor is a matrix."""
    store = store_with()
    before = store.memory.used
    vector = new_session(store, "small_fc", [("v", (2048,))])
    first = store.memory.used - before
    new_session(store, "small_fc", [("w", (32, 64))])
    assert first - (store.memory.used - before - first) == 4 * 3 * (2048 - 32 - 64)
    before = store.memory.used
    vector.awake.save("one")
    assert store.memory.used - before > 4 * (3 + 4) * 2048
    vector.awake.close()


@KINDS
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_goes_its_way(kind, dtype):
    one = new_session(store_with(), kind, dtype=dtype)
    sent = StepGradients(one.layout.complete, dtype, 1.0)
    sent.bits[:] = np.frombuffer(np.float16(0.5).tobytes(), sent.bits.dtype)[0] if dtype == "float16" else 0x3F00
    assert one.awake.take(sent, one.awake.observe(sent)).dtype == sent.bits.dtype


@KINDS
def test_many_tensors_leave_the_event_loop_free(kind):
    async def test():
        store = store_with()
        session = new_session(store, kind, [(str(number), (2,)) for number in range(500)])
        step = asyncio.create_task(store.turns.run(session, lambda awake: time.sleep(0.3)))
        start = time.perf_counter()
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert time.perf_counter() - start < 0.2
        await step
        await store.close()

    asyncio.run(test())
