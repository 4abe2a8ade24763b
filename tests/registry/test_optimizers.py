import json
import threading
from itertools import pairwise

import pytest

from optserve_server.registry import aliases, optimizers
from optserve_server.registry.aliases import Proof
from optserve_server.registry.database import Database
from optserve_server.registry.errors import (
    AliasNotFound,
    AliasReserved,
    EvaluationNotFound,
    NameInvalid,
    OptimizerNotFound,
    PromotionInvalid,
    PromotionUnproven,
    VersionNotFound,
)


@pytest.fixture
def lstm(database, weights_file) -> Database:
    """`lstm` with three versions, `champion` on the second and `stable` on the first."""
    with database.session(write=True) as db_session:
        for seed in range(3):
            optimizers.add_version(db_session, "lstm", weights_file(seed))
    for alias, number in (("champion", 2), ("stable", 1)):
        _set_alias(database, "lstm", alias, number)
    return database


def _set_alias(database, name, alias, number, moved_by="ada", **proof):
    with database.session(write=True) as db_session:
        optimizer = optimizers.get_optimizer(db_session, name, lock=True)
        version = optimizers.get_version(db_session, name, number)
        aliases.set_alias(db_session, optimizer, alias, version, moved_by=moved_by, proof=Proof(**proof))


def _remove_alias(database, name, alias):
    with database.session(write=True) as db_session:
        optimizer = optimizers.get_optimizer(db_session, name, lock=True)
        aliases.remove_alias(db_session, optimizer, alias, moved_by="grace")


def _resolve(database, reference):
    with database.session() as db_session:
        return optimizers.resolve(db_session, reference)


def _aliases(database, name):
    with database.session() as db_session:
        optimizer = optimizers.get_optimizer(db_session, name)
        return {found.alias: found.number for found in aliases.list_aliases(db_session, optimizer)}


# --- references -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "number"),
    [("lstm", 2), ("lstm@1", 1), ("lstm@003", 3), ("lstm@stable", 1), ("lstm@latest", 3), ("lstm@champion", 2)],
)
def test_a_reference_stands_for_one_version(lstm, reference, number):
    assert _resolve(lstm, reference).number == number


def test_a_bare_name_without_champion_is_the_newest(lstm):
    _remove_alias(lstm, "lstm", "champion")
    assert _resolve(lstm, "lstm").number == 3


def test_a_resolved_version_has_the_stored_bytes(lstm, weights_file):
    stored = _resolve(lstm, "lstm@2")
    assert stored.weights == weights_file(1).data
    assert stored.sha256 == weights_file(1).sha256
    assert stored.architecture["kind"] == "lstm"
    assert stored.name == "lstm"


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("lstn", OptimizerNotFound, "no optimizer 'lstn' [(]did you mean 'lstm'[?][)]. GET"),
        ("LSTM@1", OptimizerNotFound, "no optimizer 'LSTM' [(]did you mean 'lstm'[?][)]"),
        ("quite-another", OptimizerNotFound, r"no optimizer 'quite-another'\. GET /v1/optimizers lists"),
        ("", OptimizerNotFound, "no optimizer ''"),
        ("@champion", OptimizerNotFound, "no optimizer ''"),
        ("ls\0tm", OptimizerNotFound, r"no optimizer 'ls\\x00tm' [(]did you mean 'lstm'[?][)]"),
        ("x" * 5000, OptimizerNotFound, "no optimizer 'x{80}…'"),
        ("lstm@4", VersionNotFound, "'lstm' has no version 4; it has versions 1 to 3"),
        ("lstm@0", VersionNotFound, "'lstm' has no version 0"),
        ("lstm@" + "9" * 5000, VersionNotFound, "it has versions 1 to 3"),
        ("lstm@champoin", AliasNotFound, "did you mean 'champion'[?][)]. It has champion, latest, stable"),
        ("lstm@-1", AliasNotFound, "'lstm' has no alias '-1'"),
        ("lstm@1@2", AliasNotFound, "'lstm' has no alias '1@2'"),
        ("lstm@\0", AliasNotFound, "'lstm' has no alias"),
        ("lstm@", NameInvalid, r"ends in @; write NAME, NAME@7"),
    ],
)
def test_a_reference_to_nothing_says_what_comes_near(lstm, reference, error, message):
    with pytest.raises(error, match=message):
        _resolve(lstm, reference)


# --- versions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "..", "LSTM", "a b", "a@b", "a/b", "é", "x" * 65, "lstm\n"])
def test_a_name_of_another_form_is_refused(database, weights_file, name):
    with pytest.raises(NameInvalid, match="1 to 64 lower-case letters"), database.session(write=True) as db_session:
        optimizers.add_version(db_session, name, weights_file())


def test_the_name_of_a_hand_designed_optimizer_is_taken(database, weights_file):
    with pytest.raises(NameInvalid, match=r"'adam' is .* built in"), database.session(write=True) as db_session:
        optimizers.add_version(db_session, "adam", weights_file())


def test_lineage_and_origin_are_kept(database, weights_file):
    recipe = {"name": "lstm", "seed": 3}
    environment = {
        "torch": "2.6",
        "device": "cuda",
        "optserve": "0.1.0",
        "commit": "a0b1c2",
        "python": "3.11.7",
        "machine": "x86_64",
        "seed": "3",
    }
    file = weights_file(1, recipe=json.dumps(recipe), metrics='{"meta_loss": 0.5}', **environment, other="x")
    with database.session(write=True) as db_session:
        parent = optimizers.add_version(db_session, "ancestor", weights_file())
        optimizers.add_version(db_session, "lstm", file, parent=parent, run="run-1")
    with database.session() as db_session:
        version = optimizers.get_version(db_session, "lstm", 1)
        assert (version.parent.optimizer.name, version.parent.number, version.run) == ("ancestor", 1, "run-1")
        assert (version.recipe, version.metrics) == (recipe, {"meta_loss": 0.5})
        assert version.environment == environment


def test_the_newest_description_counts_and_an_empty_one_does_not(database, weights_file):
    for seed, description in enumerate(["the first", "the second", ""]):
        with database.session(write=True) as db_session:
            optimizers.add_version(db_session, "lstm", weights_file(seed, description=description))
    with database.session() as db_session:
        assert optimizers.get_optimizer(db_session, "lstm").description == "the second"


def test_best_is_the_lowest_held_out_meta_loss(database, weights_file):
    followed = []
    for seed, loss in enumerate([0.5, 0.7, 0.3, 0.3, True, "low", None]):
        metrics = json.dumps({"meta_loss_held_out": loss})
        with database.session(write=True) as db_session:
            optimizers.add_version(db_session, "lstm", weights_file(seed, metrics=metrics))
        followed.append(_aliases(database, "lstm")["best"])
    assert followed == [1, 1, 3, 3, 3, 3, 3]


def test_without_a_held_out_meta_loss_there_is_no_best(database, weights_file):
    with database.session(write=True) as db_session:
        optimizers.add_version(db_session, "lstm", weights_file())
    assert _aliases(database, "lstm") == {"latest": 1}


def test_versions_added_at_once_are_numbered_without_gaps(database, weights_file):
    files = [weights_file(seed) for seed in range(8)]
    start = threading.Barrier(len(files))

    def add(file):
        start.wait()
        with database.session(write=True) as db_session:
            optimizers.add_version(db_session, "lstm", file)

    threads = [threading.Thread(target=add, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.session() as db_session:
        optimizer = optimizers.get_optimizer(db_session, "lstm")
        assert [version.number for version in optimizers.list_versions(db_session, optimizer)] == [
            8,
            7,
            6,
            5,
            4,
            3,
            2,
            1,
        ]
        moves = [move.number for move in aliases.list_moves(db_session, optimizer)]
    assert moves == [8, 7, 6, 5, 4, 3, 2, 1]


def test_lists_go_on_where_the_last_page_ended(lstm, weights_file):
    with lstm.session(write=True) as db_session:
        for name in ("b", "a.1", "z"):
            optimizers.add_version(db_session, name, weights_file())
    with lstm.session() as db_session:
        names, after = [], ""
        while page := optimizers.list_entries(db_session, limit=2, after=after):
            assert len(page) <= 2
            names += [entry.optimizer.name for entry in page]
            after = names[-1]
        assert names == ["a.1", "b", "lstm", "z"]
        optimizer = optimizers.get_optimizer(db_session, "lstm")
        newest = optimizers.list_versions(db_session, optimizer, limit=2)
        older = optimizers.list_versions(db_session, optimizer, limit=2, below=newest[-1].number)
    assert [version.number for version in [*newest, *older]] == [3, 2, 1]


def test_an_entry_tells_what_the_bare_name_means(lstm):
    with lstm.session() as db_session:
        entry = optimizers.get_entry(db_session, "lstm")
    assert (entry.latest, entry.champion, entry.served.number) == (3, 2, 2)


# --- aliases ----------------------------------------------------------------------------------------------------------


def test_every_move_is_written_down_with_who_and_when(lstm):
    _set_alias(lstm, "lstm", "champion", 3, force=True)
    _set_alias(lstm, "lstm", "champion", 3)  # where it points already: no move
    _remove_alias(lstm, "lstm", "stable")
    with lstm.session() as db_session:
        moves = aliases.list_moves(db_session, optimizers.get_optimizer(db_session, "lstm"))
    assert [(move.alias, move.number, move.moved_by) for move in moves] == [
        ("stable", None, "grace"),
        ("champion", 3, "ada"),
        ("stable", 1, "ada"),
        ("champion", 2, "ada"),
        ("latest", 3, "server"),
        ("latest", 2, "server"),
        ("latest", 1, "server"),
    ]
    assert all(earlier.moved_at <= later.moved_at for later, earlier in pairwise(moves))
    assert _aliases(lstm, "lstm") == {"champion": 3, "latest": 3}


def test_a_champion_gives_way_to_force_and_that_is_on_record(lstm):
    with pytest.raises(
        PromotionUnproven, match=r"lstm@2 is the champion.*evaluate lstm@3 lstm@2`.*`evaluation`.*--force"
    ):
        _set_alias(lstm, "lstm", "champion", 3)
    _set_alias(lstm, "lstm", "champion", 2, force=True)  # it is already: nothing to force
    _set_alias(lstm, "lstm", "champion", 3, force=True)
    _remove_alias(lstm, "lstm", "champion")
    _set_alias(lstm, "lstm", "champion", 1, force=True)  # nobody to beat
    with lstm.session() as db_session:
        moves = aliases.list_moves(db_session, optimizers.get_optimizer(db_session, "lstm"))
    assert [(move.number, move.forced) for move in moves if move.alias == "champion"] == [
        (1, False),
        (None, False),
        (3, True),
        (2, False),
    ]


def test_a_champion_gives_way_to_whoever_beat_it_and_the_evaluation_is_on_record(lstm, evaluated):
    won, lost = evaluated({"lstm@3": 0.8, "lstm@2": 0.9}), evaluated({"lstm@3": 0.9, "lstm@2": 0.8})
    of_another, of_others = evaluated({"lstm@1": 0.8, "lstm@2": 0.9}), evaluated({"lstm@1": 0.8})
    for evaluation, reason in (
        (lost, f"evaluation {lost}: its score is 0.9, that of lstm@2 0.8; lower is better"),
        (of_another, f"lstm@3 is not in evaluation {of_another}"),
        (of_others, f"lstm@3 and lstm@2 are not in evaluation {of_others}"),
    ):
        with pytest.raises(PromotionUnproven, match=reason):
            _set_alias(lstm, "lstm", "champion", 3, evaluation=evaluation)
    with pytest.raises(EvaluationNotFound):
        _set_alias(lstm, "lstm", "champion", 3, evaluation="nothing")
    with pytest.raises(PromotionInvalid, match="exclude each other"):
        _set_alias(lstm, "lstm", "champion", 3, evaluation=won, force=True)
    with pytest.raises(PromotionInvalid, match="'stable' moves without them"):
        _set_alias(lstm, "lstm", "stable", 3, evaluation=won)
    _set_alias(lstm, "lstm", "champion", 3, evaluation=won)
    with lstm.session() as db_session:
        move = aliases.list_moves(db_session, optimizers.get_optimizer(db_session, "lstm"))[0]
    assert (move.alias, move.number, move.forced, move.evaluation) == ("champion", 3, False, won)


@pytest.mark.parametrize("alias", ["latest", "best"])
def test_the_servers_own_aliases_are_not_moved_by_hand(lstm, alias):
    with pytest.raises(AliasReserved, match=f"moves the alias '{alias}' itself"):
        _set_alias(lstm, "lstm", alias, 1)
    with pytest.raises(AliasReserved):
        _remove_alias(lstm, "lstm", alias)
    assert _aliases(lstm, "lstm")["latest"] == 3


@pytest.mark.parametrize("alias", ["7", "Champion", "", "a@b"])
def test_an_alias_that_no_reference_could_name_is_refused(lstm, alias):
    with pytest.raises(NameInvalid):
        _set_alias(lstm, "lstm", alias, 1)


@pytest.mark.parametrize("number", [0, 4, -1, 10**30])
def test_an_alias_needs_a_version_that_exists(lstm, number):
    with pytest.raises(VersionNotFound, match="it has versions 1 to 3"):
        _set_alias(lstm, "lstm", "champion", number)


def test_removing_what_is_not_there_says_so(lstm):
    with pytest.raises(AliasNotFound, match="did you mean 'stable'"):
        _remove_alias(lstm, "lstm", "stabel")
