"""The directory of sessions: one server at a time, descriptions that notice damage, removal as a whole."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.sessions.storage.conftest import generation
from tests.sessions.storage.test_journal import files_at_most

from optserve_server.sessions.storage.directory import SessionDirectory, read_description, remove_unfinished
from optserve_server.sessions.storage.errors import Damaged, DirectoryInUse
from optserve_server.sessions.storage.snapshots import Snapshot, read, read_fields, write

DESCRIPTION = {"label": "größer", "parameters": [["w", [2, 3]]], "horizon": None, "ttl_seconds": 0.5}


def test_a_session_is_described_until_it_is_removed(tmp_path: Path) -> None:
    directory = SessionDirectory(tmp_path / "sessions")
    directory.create("b", DESCRIPTION, generation())
    directory.create("a", DESCRIPTION, generation())
    assert directory.sessions() == ["a", "b"]
    assert read_description(directory.place("b")) == DESCRIPTION
    directory.remove("b")
    assert directory.sessions() == ["a"]
    assert sorted(path.name for path in directory.path.iterdir()) == ["a", "lock"]


def test_another_process_cannot_have_the_directory(tmp_path: Path) -> None:
    directory = SessionDirectory(tmp_path)
    module = "optserve_server.sessions.storage.directory"
    take = f"import sys, pathlib, {module} as directory; directory.SessionDirectory(pathlib.Path(sys.argv[1]))"
    other = subprocess.run([sys.executable, "-c", take, tmp_path], capture_output=True, text=True, check=False)
    assert "another server keeps its sessions" in other.stderr
    with pytest.raises(DirectoryInUse, match="--data-dir"):
        SessionDirectory(tmp_path)
    directory.close()
    SessionDirectory(tmp_path).close()


def test_a_session_whose_creation_or_removal_was_cut_off_is_gone(tmp_path: Path) -> None:
    directory = SessionDirectory(tmp_path)
    for name, left in (("a", "a.removed"), ("b", "b.created")):
        directory.create(name, DESCRIPTION, generation())
        directory.place(name).rename(tmp_path / left)
    directory.close()
    assert SessionDirectory(tmp_path).sessions() == []
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_session_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    directory = SessionDirectory(tmp_path)
    with files_at_most(1000), pytest.raises(OSError, match="large"):
        directory.create("a", DESCRIPTION, generation())
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_flipped_bit_in_a_description_is_noticed(tmp_path: Path) -> None:
    path = SessionDirectory(tmp_path).create("a", DESCRIPTION, generation()).path.with_name("session.json")
    whole = bytearray(path.read_bytes())
    for place in range(len(whole)):
        for bit in range(8):
            whole[place] ^= 1 << bit
            path.write_bytes(whole)
            with pytest.raises(Damaged, match=r"session\.json"):
                read_description(path.parent)
            whole[place] ^= 1 << bit


def test_a_flipped_bit_in_a_snapshot_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.snapshot"
    snapshot = Snapshot("a", 3, {"clocks": [1, 2]}, {"state": bytes(range(100)), "updates": b"xyz"})
    write(path, snapshot)
    assert read(path) == snapshot
    assert read_fields(path).fields == snapshot.fields
    whole = bytearray(path.read_bytes())
    for place in [*range(300), *range(4000, len(whole))]:
        whole[place] ^= 4
        path.write_bytes(whole)
        with pytest.raises(Damaged, match=r"a\.snapshot"):
            read(path)
        whole[place] ^= 4
    for length in (0, 10, 4095, 4096, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged, match=r"a\.snapshot"):
            read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(Damaged, match="goes on"):
        read(path)


def test_unfinished_files_are_removed(tmp_path: Path) -> None:
    place = SessionDirectory(tmp_path).create("a", DESCRIPTION, generation()).path.parent
    (place / "checkpoints").mkdir()
    for name in ("1.snapshot.writing", "checkpoints/2.snapshot.writing"):
        (place / name).write_bytes(b"half")
    remove_unfinished(place)
    assert sorted(path.name for path in place.rglob("*")) == ["00000001.journal", "checkpoints", "session.json"]
