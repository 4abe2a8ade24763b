"""Generations: the way to each state, what can be gone back to, and what is removed."""

from pathlib import Path

import pytest
from tests.sessions.storage.conftest import SESSION, generation, record

from optserve_server.sessions.storage import snapshots
from optserve_server.sessions.storage.errors import Damaged, StepNotRetained
from optserve_server.sessions.storage.journal import Journal
from optserve_server.sessions.storage.lineage import Lineage, journal_path, snapshot_path
from optserve_server.sessions.storage.snapshots import Snapshot


def begun(place: Path) -> Lineage:
    """Generation 1 with the steps 0 to 9, 2 with 10 to 19 and 3 with 20 to 29."""
    append(Journal.begin(journal_path(place, 1), generation()), range(10))
    lineage = Lineage(place)
    append(lineage.begin(generation(first_step=10, parent=1)), range(10, 20))
    append(lineage.begin(generation(first_step=20, parent=2)), range(20, 30))
    return lineage


def append(journal: Journal, steps: range) -> None:
    for step in steps:
        journal.append(record(step), sync=False)
    journal.close()


def state(step: int) -> Snapshot:
    return Snapshot(SESSION, step, {"loss": 0.5}, {"state": f"state at {step}".encode(), "empty": b""})


def legs(lineage: Lineage, step: int | None = None) -> list[tuple[int, int | None]]:
    return [(leg.generation.number, leg.until) for leg in lineage.route(step).legs]


def test_without_snapshots_all_is_replayed_from_the_beginning(tmp_path: Path) -> None:
    lineage = begun(tmp_path)
    assert lineage.route().snapshot is None
    assert legs(lineage) == [(1, 10), (2, 20), (3, None)]
    assert legs(Lineage(tmp_path)) == [(1, 10), (2, 20), (3, None)]


def test_the_newest_snapshot_on_the_way_is_where_replay_begins(tmp_path: Path) -> None:
    lineage = begun(tmp_path)
    snapshots.write(snapshot_path(tmp_path, 2), state(10))
    assert legs(lineage) == [(2, 20), (3, None)]
    assert legs(lineage, 20) == [(2, 20), (3, 20)]
    assert legs(lineage, 19) == [(2, 19)]
    assert legs(lineage, 9) == [(1, 9)]
    assert lineage.route(19).snapshot == snapshot_path(tmp_path, 2)


def test_after_going_back_the_way_leads_through_the_step_gone_back_to(tmp_path: Path) -> None:
    lineage = begun(tmp_path)
    append(lineage.begin(generation(first_step=15, parent=2)), range(15, 17))
    assert legs(lineage) == [(1, 10), (2, 15), (4, None)]
    assert legs(lineage, 12) == [(1, 10), (2, 12)]


def test_a_state_that_was_put_in_needs_nothing_from_before(tmp_path: Path) -> None:
    lineage = begun(tmp_path)
    append(lineage.begin(generation(first_step=7, parent=None), state(7)), range(7, 9))
    assert legs(lineage) == [(4, None)]
    with pytest.raises(StepNotRetained, match="7 to"):
        lineage.route(6)


def test_a_snapshot_can_be_a_file_that_stands_elsewhere(tmp_path: Path) -> None:
    lineage = begun(tmp_path)
    snapshots.write(tmp_path / "kept.snapshot", state(7))
    lineage.begin(generation(first_step=7, parent=None), tmp_path / "kept.snapshot").close()
    route = lineage.route()
    assert route.snapshot is not None
    assert snapshots.read(route.snapshot) == state(7)


def test_a_snapshot_left_behind_by_a_crash_is_not_taken_for_another_generations(tmp_path: Path) -> None:
    lineage = begun(tmp_path)
    snapshots.write(snapshot_path(tmp_path, 4), state(3))
    lineage.begin(generation(first_step=30, parent=3)).close()
    assert legs(lineage) == [(1, 10), (2, 20), (3, 30), (4, None)]


def test_pruning_keeps_the_way_to_the_oldest_step_and_removes_the_rest(tmp_path: Path) -> None:
    lineage = begun(tmp_path)
    snapshots.write(snapshot_path(tmp_path, 2), state(10))
    append(lineage.begin(generation(first_step=25, parent=3)), range(25, 27))
    assert lineage.prune(5) == 0
    assert lineage.numbers == [1, 2, 3, 4]
    snapshots.write(snapshot_path(tmp_path, 3), state(20))
    assert lineage.prune(15) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00000002.journal", "00000002.snapshot", "00000003.journal", "00000003.snapshot", "00000004.journal",
    ]  # fmt: skip
    assert legs(Lineage(tmp_path), 15) == [(2, 15)]
    with pytest.raises(StepNotRetained, match="10 to"):
        lineage.route(9)


def test_what_was_abandoned_is_removed(tmp_path: Path) -> None:
    lineage = begun(tmp_path)
    lineage.begin(generation(first_step=15, parent=2)).close()
    assert lineage.prune(0) == 0
    assert lineage.numbers == [1, 2, 4]


def test_a_missing_snapshot_is_noticed(tmp_path: Path) -> None:
    lineage = begun(tmp_path)
    snapshots.write(snapshot_path(tmp_path, 3), state(20))
    lineage.prune(20)
    snapshot_path(tmp_path, 3).unlink()
    with pytest.raises(Damaged, match=r"00000003\.snapshot: it is missing"):
        lineage.route()


def test_a_header_that_cannot_be_read_is_in_nobodys_way_who_has_a_snapshot_behind_it(tmp_path: Path) -> None:
    lineage = begun(tmp_path)
    path = journal_path(tmp_path, 1)
    path.write_bytes(b"?" + path.read_bytes()[1:])
    with pytest.raises(Damaged, match=r"00000001\.journal"):
        lineage.route()
    snapshots.write(snapshot_path(tmp_path, 2), state(10))
    assert legs(lineage) == [(2, 20), (3, None)]
    with pytest.raises(StepNotRetained, match="10 to"):
        lineage.route(9)
    assert lineage.prune(0) == 10
    assert not path.exists()


def test_a_pruning_that_is_cut_off_leaves_nothing_that_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lineage = begun(tmp_path)
    append(lineage.begin(generation(first_step=30, parent=3), state(30)), range(30, 31))
    unlink, removed = Path.unlink, []

    def once(path: Path, missing_ok: bool = False) -> None:
        if removed:
            raise OSError("the power is gone")
        removed.append(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", once)
    with pytest.raises(OSError, match="power"):
        lineage.prune(30)
    with pytest.raises(StepNotRetained, match="30 to"):
        Lineage(tmp_path).route(29)
    assert legs(Lineage(tmp_path)) == [(4, None)]
