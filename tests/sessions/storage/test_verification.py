"""Verification: what is sound is found sound, also beside a server at work, and any flipped bit is told by file."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sessions.storage.conftest import SESSION, generation, record

from optserve_server.sessions.storage import snapshots
from optserve_server.sessions.storage.directory import SessionDirectory
from optserve_server.sessions.storage.journal import Journal
from optserve_server.sessions.storage.lineage import Lineage, journal_path, snapshot_path
from optserve_server.sessions.storage.snapshots import Snapshot
from optserve_server.sessions.storage.verification import Verification, verify


def state(step: int, session: str = SESSION) -> Snapshot:
    return Snapshot(session, step, {}, {"state": f"state at {step}".encode()})


def append(journal: Journal, steps: range) -> None:
    for step in steps:
        journal.append(record(step), sync=False)
    journal.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Generations 1 (steps 0 to 9), 2 (10 to 19, with a snapshot), abandoned 3, 4 (from 15 on); and a checkpoint."""
    directory = SessionDirectory(tmp_path)
    append(directory.create(SESSION, {"id": SESSION, "label": "größer"}, generation()), range(10))
    place = directory.place(SESSION)
    lineage = Lineage(place)
    append(lineage.begin(generation(first_step=10, parent=1), state(10)), range(10, 20))
    append(lineage.begin(generation(first_step=20, parent=2)), range(20, 25))
    append(lineage.begin(generation(first_step=15, parent=2)), range(15, 18))
    (place / "checkpoints").mkdir()
    snapshots.write(place / "checkpoints" / "aa.snapshot", state(12))
    yield place
    directory.close()


def found(place: Path) -> Verification:
    found = verify(place)
    assert found is not None
    return found


def flip(path: Path, position: int, bit: int = 3) -> None:
    octets = bytearray(path.read_bytes())
    octets[position] ^= 1 << bit
    path.write_bytes(octets)


def test_a_sound_session_is_described(place: Path) -> None:
    told = found(place)
    sizes = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    assert told == Verification(SESSION, 18, 0, generations=4, checkpoints=1, bytes=sizes, damage=())


def test_a_file_with_two_names_counts_once(place: Path) -> None:
    before = found(place).bytes
    Lineage(place).begin(generation(first_step=12, parent=None), place / "checkpoints" / "aa.snapshot").close()
    told = found(place)
    assert (told.next_step, told.oldest_step, told.damage) == (12, 12, ())
    assert told.bytes == before + 4096


def test_a_torn_end_is_no_damage(place: Path) -> None:
    path = journal_path(place, 4)
    whole = path.read_bytes()
    for length in range(len(whole) - 1, len(whole) - 80, -7):
        path.write_bytes(whole[:length])
        told = found(place)
        assert (told.next_step, told.damage) == (17, ())


def test_a_flipped_bit_anywhere_is_told_by_file(place: Path) -> None:
    chance = random.Random(0)
    for path in [path for path in place.rglob("*") if path.is_file()]:
        size = path.stat().st_size
        for position in [*chance.sample(range(size), 15), *range(max(0, size - 16), size)]:
            flip(path, position)
            assert {damage.file for damage in found(place).damage} == {str(path.relative_to(place))}, position
            flip(path, position)
    assert found(place).damage == ()


BODY = 4096 + 72  # where the first record's body is


@pytest.mark.parametrize(
    ("name", "position", "word", "mend"),
    [
        ("session.json", 9, "checksum", "put the file back"),
        ("00000001.journal", BODY, "before step 0 is read", "no longer go back to the steps 1 to 9"),
        ("00000001.journal", 20, "header", "no longer go back to steps before 10"),
        ("00000002.journal", BODY, "before step 10 is read", 'restore {"step": 10}'),
        ("00000003.journal", BODY, "before step 20 is read", "nothing is lost"),
        ("00000003.journal", 20, "header", "nothing is lost"),
        ("00000004.journal", BODY, "before step 15 is read", f'{SESSION}/restore {{"step": 15}}'),
        ("00000004.journal", 20, "header", 'restore {"step": 25}'),
        ("00000002.snapshot", 4097, "section 'state'", "remove the file: the journals"),
        ("checkpoints/aa.snapshot", 4097, "section 'state'", "save it again"),
    ],
)
def test_what_to_do_is_said(place: Path, name: str, position: int, word: str, mend: str) -> None:
    flip(place / name, position)
    (damage,) = found(place).damage
    assert damage.file == name
    assert word in damage.reason
    assert mend in damage.mend


def test_where_the_newest_header_is_damaged_the_journals_before_are_a_way_back(place: Path) -> None:
    snapshots.write(snapshot_path(place, 4), state(15))  # as whoever goes back writes it: it tells where 4 began
    flip(place / "00000004.journal", 20)
    told = found(place)
    assert 'restore {"step": 15}' in told.damage[0].mend
    assert told.oldest_step == 0


def test_only_the_steps_between_the_damage_and_the_next_snapshot_are_lost(place: Path) -> None:
    path = place / "00000001.journal"
    for records, mend in ((1, "every step can still be gone back to"), (2, "no longer go back to step 9")):
        position = path.stat().st_size - 100 * records + 80  # records have 100 bytes
        flip(path, position)
        assert found(place).damage[0].mend.endswith(mend)
        flip(path, position)


def test_behind_a_header_that_cannot_be_read_nothing_can_be_gone_back_to(place: Path) -> None:
    flip(place / "00000001.journal", 20)
    assert found(place).oldest_step == 10
    snapshot_path(place, 2).unlink()
    assert found(place).oldest_step is None
    assert "restore a checkpoint" in found(place).damage[0].mend


def test_what_was_abandoned_at_a_step_may_be_damaged_from_there_on(place: Path) -> None:
    snapshots.write(snapshot_path(place, 4), state(15))
    path = journal_path(place, 2)
    damage_from_15 = path.stat().st_size - 5 * 100  # records have 100 bytes
    flip(path, damage_from_15 + 80)
    (damage,) = found(place).damage
    assert "before step 15 is read" in damage.reason
    assert "nothing is lost" in damage.mend


def test_a_snapshot_without_which_nothing_can_be_replayed(place: Path) -> None:
    Lineage(place).prune(15)
    path = snapshot_path(place, 2)
    assert (found(place).oldest_step, found(place).damage) == (10, ())
    flip(path, 4097)
    assert "restore a checkpoint" in found(place).damage[0].mend
    path.unlink()
    (damage,) = found(place).damage
    assert (damage.file, damage.reason) == (path.name, "it is missing")
    assert "restore a checkpoint" in damage.mend


def test_steps_that_are_missing_between_two_journals(place: Path) -> None:
    path = journal_path(place, 2)
    path.write_bytes(path.read_bytes()[: 4096 + 3 * 100])  # records of 100 bytes: up to step 12
    (damage,) = found(place).damage
    assert damage.file == path.name
    assert "ends at step 13, and generation 3 goes on from its step 20" in damage.reason
    assert 'restore {"step": 13}' in damage.mend


def test_steps_that_are_missing_in_a_journal(place: Path) -> None:
    journal = Lineage(place).begin(generation(first_step=16, parent=4))
    append(journal, range(16, 17))
    journal = Journal.resume(journal.path)
    append(journal, range(18, 19))
    (damage,) = found(place).damage
    assert "step 18 stands where 17 belongs" in damage.reason
    assert found(place).next_step == 17


@pytest.mark.parametrize("kind", ["description", "journal", "snapshot", "checkpoint"])
def test_files_of_another_session(place: Path, kind: str) -> None:
    path = {
        "description": place / "session.json",
        "journal": journal_path(place, 5),
        "snapshot": snapshot_path(place, 2),
        "checkpoint": place / "checkpoints" / "aa.snapshot",
    }[kind]
    if kind == "journal":
        path.write_bytes(journal_path(place, 4).read_bytes())
        word = "generation 4"
    elif kind == "description":
        directory = SessionDirectory(place / "elsewhere")
        directory.create("7e57", {"id": "7e57"}, generation()).close()
        directory.close()
        path.write_bytes((place / "elsewhere" / "7e57" / "session.json").read_bytes())
        word = "of session 7e57"
    else:
        path.unlink()
        snapshots.write(path, state(10, "7e57"))
        word = "of session 7e57"
    (damage,) = found(place).damage
    assert damage.file == str(path.relative_to(place))
    assert word in damage.reason


def test_a_snapshot_of_another_step(place: Path) -> None:
    snapshots.write(snapshot_path(place, 2), state(11))
    assert "it is of step 11, and its journal begins at 10" in found(place).damage[0].reason


def test_a_session_without_journals(place: Path) -> None:
    for path in place.glob("*.journal"):
        path.unlink()
    told = found(place)
    assert (told.next_step, told.oldest_step, told.generations) == (None, None, 0)
    assert "no journal" in told.damage[0].reason


def test_a_session_that_is_deleted_meanwhile_is_passed_over(tmp_path: Path) -> None:
    assert verify(tmp_path / "gone") is None


def test_beside_a_server_at_work_nothing_seems_damaged(place: Path) -> None:
    done = threading.Event()

    def work() -> None:
        lineage, step = Lineage(place), 18
        while not done.is_set():
            parent = lineage.newest
            journal = lineage.begin(generation(first_step=step, parent=parent), state(step))
            for _ in range(3):
                journal.append(record(step), sync=False)
                step += 1
            journal.close()
            lineage.prune(step - 5)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        looks = [found(place)]
        while len(looks) < 50 or looks[-1].next_step < 60:  # type: ignore[operator]
            looks.append(found(place))
    finally:
        done.set()
        thread.join()
    assert [damage for look in looks for damage in look.damage] == []
