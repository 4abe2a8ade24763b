"""The arena: pages keep their numbers and contents while it grows, and free pages are zeros and cost nothing."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optserve_server.sessions.errors import StateTooLarge
from optserve_server.sessions.pages import Arena, StateMemory

PAGE = 256


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@settings(max_examples=50, deadline=None)
@given(
    features=st.sampled_from([1, 2, 3, 4, 80]),
    sizes=st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=25),
)
def test_pages_belong_to_one_owner_and_begin_as_zeros(features, sizes):
    memory = StateMemory(64 << 20)
    arena = Arena(features, memory)
    held = {}
    for number, (size, give_back) in enumerate(sizes, start=1):
        pages = arena.allocate(size)
        assert len(set(pages.tolist())) == size
        assert (arena.pages[pages] == 0).all()
        arena.pages[pages] = float(number)
        held[number] = pages
        if give_back:
            arena.free(held.pop(next(iter(held))))
        assert all((arena.pages[kept] == float(owner)).all() for owner, kept in held.items())
        assert memory.used == sum(len(kept) for kept in held.values()) * features * PAGE * 4
    for kept in held.values():
        arena.free(kept)
    assert (arena.used, memory.used) == (0, 0)


def test_an_arena_grows_without_being_moved():
    arena = Arena(2, StateMemory(256 << 20))
    first = arena.allocate(3)
    arena.pages[first] = 7.0
    address = arena.pages.data_ptr()
    arena.pages[arena.allocate(50_000)] = 1.0
    assert arena.pages.data_ptr() == address
    assert (arena.pages[first] == 7.0).all()


def test_memory_is_taken_when_it_is_written_and_given_back_when_freed():
    before = resident_bytes()
    arena = Arena(80, StateMemory(4 << 30))
    pages = arena.allocate(2000)  # 164 MB
    assert resident_bytes() - before < 20 << 20
    arena.pages[pages] = 1.0
    assert resident_bytes() - before > 150 << 20
    arena.free(pages)
    assert resident_bytes() - before < 20 << 20


def test_the_limit_is_shared_by_all_arenas():
    memory = StateMemory(10 * 2 * PAGE * 4)
    one, other = Arena(2, memory), Arena(1, memory)
    pages = one.allocate(6)
    with pytest.raises(StateTooLarge) as refused:
        other.allocate(9)
    assert (refused.value.fields["bytes_needed"], refused.value.fields["bytes_free"]) == (9 * 1024, 8 * 1024)
    other.allocate(8)
    with pytest.raises(StateTooLarge):
        one.allocate(1)
    one.free(pages)
    one.allocate(6)


def test_pages_without_features_hold_nothing_and_cost_nothing():
    memory = StateMemory(1)
    arena = Arena(0, memory)
    pages = arena.allocate(1_000_000)
    assert arena.pages[pages].shape == (1_000_000, 0, PAGE)
    arena.free(pages)
    assert memory.used == 0


def test_contents_are_copied_page_by_page():
    arena = Arena(3, StateMemory(1 << 30))
    source, target = arena.allocate(2500), arena.allocate(2500)
    arena.pages[source] = torch.rand(2500, 3, PAGE)
    arena.copy(source, target)
    assert torch.equal(arena.pages[source], arena.pages[target])
