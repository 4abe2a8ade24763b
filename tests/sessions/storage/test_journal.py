"""Journals: what is appended is read again, torn ends are cut off, and whatever else differs is refused."""

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.sessions.storage.conftest import contents, record, told

from optserve_server.sessions.storage.errors import Damaged
from optserve_server.sessions.storage.journal import Journal, read_generation
from optserve_server.sessions.storage.records import Body, Kind, Record, digest

RECORDS = [
    record(0),
    record(1, loss=0.5, extras={"skip": ["w"]}, updates_digest=digest(b"updates")),
    Record(Kind.CHANGE, 2, 7.0, Body(0), extras={"label": "ü" * 3000}),
    record(2, numbers=2000, loss=-0.0),
]


def filled(journal: Journal) -> Journal:
    for one in RECORDS:
        journal.append(one)
    return journal


def test_records_are_read_as_they_were_appended(journal: Journal) -> None:
    filled(journal)
    assert contents(journal.path) == [told(one) for one in RECORDS]
    assert read_generation(journal.path) == journal.generation


def test_a_journal_is_resumed_behind_its_last_record(journal: Journal) -> None:
    filled(journal).close()
    resumed = Journal.resume(journal.path)
    resumed.append(record(3))
    assert contents(journal.path) == [*map(told, RECORDS), told(record(3))]


def test_what_is_cut_off_anywhere_in_the_last_record_is_as_if_it_had_never_been(journal: Journal) -> None:
    for one in RECORDS[:2]:
        journal.append(one)
    start = journal.position
    journal.append(record(2))
    whole = journal.path.read_bytes()
    every = 1 if journal.generation.alignment == 1 else 13
    for length in [*range(start, len(whole), every), len(whole) - 1]:
        journal.path.write_bytes(whole[:length])
        assert contents(journal.path) == [told(one) for one in RECORDS[:2]], length
    journal.path.write_bytes(whole)
    assert len(contents(journal.path)) == 3


def test_a_torn_record_makes_room_for_the_next(journal: Journal) -> None:
    filled(journal)
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-10])
    resumed = Journal.resume(journal.path)
    resumed.append(RECORDS[-1])
    assert journal.path.read_bytes() == whole


def test_blocks_that_never_reached_the_disk_are_a_torn_record(journal: Journal) -> None:
    """After a power cut a file may have its new length and zeros where its last blocks would be."""
    filled(journal)
    whole = journal.path.read_bytes()
    start = len(whole) - 4096
    journal.path.write_bytes(whole[:start] + bytes(4096))
    assert contents(journal.path) == [told(one) for one in RECORDS[:-1]]
    journal.path.write_bytes(whole + bytes(10_000))
    assert contents(journal.path) == [told(one) for one in RECORDS]


def test_a_flipped_bit_anywhere_is_noticed(journal: Journal) -> None:
    for one in RECORDS[:2]:
        journal.append(one)
    whole = bytearray(journal.path.read_bytes())
    every = 1 if journal.generation.alignment == 1 else 7
    for place in range(0, len(whole), every):
        whole[place] ^= 1 << place % 8
        journal.path.write_bytes(whole)
        with pytest.raises(Damaged, match=journal.path.name):
            contents(journal.path)
        whole[place] ^= 1 << place % 8


def test_the_step_before_the_damage_is_named(journal: Journal) -> None:
    for step in range(3):
        journal.append(record(step))
    data = bytearray(journal.path.read_bytes())
    data[-1] ^= 1
    journal.path.write_bytes(data)
    with pytest.raises(Damaged, match="before step 2") as raised:
        contents(journal.path)
    assert raised.value.step == 2


def test_a_record_of_another_journal_is_noticed(journal: Journal) -> None:
    other = Journal.begin(journal.path.with_name("other"), journal.generation.__class__("x", 1, 0, 0, "kernel", {}))
    other.append(record(0))
    data = other.path.read_bytes()
    journal.path.write_bytes(journal.path.read_bytes() + data[4096:])
    with pytest.raises(Damaged):
        contents(journal.path)


def test_nothing_is_left_of_a_record_that_does_not_fit(journal: Journal) -> None:
    journal.append(RECORDS[0])
    before = journal.path.read_bytes()
    large = record(1, numbers=100_000)
    with files_at_most(50_000), pytest.raises(OSError, match=r".") as raised:
        journal.append(large)
    assert raised.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert journal.path.read_bytes() == before
    journal.append(large)
    assert contents(journal.path) == [told(RECORDS[0]), told(large)]


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
