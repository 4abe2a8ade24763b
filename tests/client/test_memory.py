"""Replies are read into memory that is used again, but never while anybody can still see what is in it."""

import gc
import itertools

import numpy as np
import pytest

from optserve.memory import Memory

LARGE = 1 << 20


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("keep", [lambda a: a, lambda a: a[5:].view(np.float32)[::2], lambda a: a[3:].data, memoryview])
def test_memory_comes_back_when_the_last_view_of_it_has_gone(keep):
    memory = Memory(LARGE + 5)
    first = memory.lend()
    where, kept = address(first), keep(first)
    del first
    second = memory.lend()
    assert address(second) != where
    del kept
    third, fourth = memory.lend(), memory.lend()
    assert address(third) == where
    assert len({address(second), address(third), address(fourth)}) == 3


def test_no_more_than_two_free_arrays_are_kept():
    memory = Memory(LARGE)
    lent = [memory.lend() for _ in range(5)]
    del lent
    assert len(memory._free) == 2


@pytest.mark.parametrize("call", ["step", "step_flat"])
def test_updates_stay_as_they_are_while_somebody_has_them(client, call):
    coordinates = LARGE // 4 + 7
    with client.sessions.create("sgd", {"w": (coordinates - 7,), "b": (7,)}) as session:
        kept = []
        for number in range(1, 5):
            gradients = np.full(coordinates, number, np.float32)
            if call == "step":
                kept.append(session.step({"w": gradients[7:], "b": gradients[:7]})["b"])
            else:
                kept.append(session.step_flat(gradients)[-7:])
        for first, later in itertools.pairwise(kept):
            assert not np.array_equal(first, later)
        assert [float(updates[0] / kept[0][0]) for updates in kept] == [1, 2, 3, 4]
        assert len({address(updates.base) for updates in kept}) == 4


def test_a_loop_that_lets_go_of_its_updates_gets_the_same_memory_again(client):
    gc.disable()  # nothing waits to be found
    try:
        with client.sessions.create("sgd", {"w": (LARGE // 4,)}) as session:
            gradients = np.ones(LARGE // 4, np.float32)
            places = {address(session.step_flat(gradients)) for _ in range(4)}
    finally:
        gc.enable()
    assert len(places) == 1
