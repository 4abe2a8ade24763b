"""A run that ends before its last outer step, because nothing better comes."""

import pytest

from optserve_server.metatraining import outer_loop
from optserve_server.registry.errors import RunConflict


def test_a_run_whose_patience_ends_has_succeeded_and_goes_on_with_more_outer_steps(queue, working, monkeypatch) -> None:
    losses = iter([2.0, 3.0, 4.0, 5.0, 1.0, 6.0, 7.0])
    monkeypatch.setattr(outer_loop, "held_out_loss", lambda recipe, *_: next(losses) if recipe.name == "tiny" else 1.0)
    validation = {"tasks": [{"family": "quadratic"}], "horizons": [3], "patience": 2}
    run_id = queue.add(outer_steps=20, validation=validation, checkpoints={"every": 2})
    with working():
        entry = queue.wait(run_id)
        assert (entry.run.status, entry.run.error) == ("succeeded", None)
        assert (entry.run.outer_step, entry.run.outer_steps, entry.run.recipe["meta_optimizer"]["outer_steps"]) == (
            6,
            6,
            20,
        )
        assert entry.versions == [1, 2, 3]
        with pytest.raises(RunConflict, match="has succeeded after 6 of 20 outer steps; resume it with more"):
            queue.resume(run_id)
        queue.resume(run_id, 30)
        entry = queue.wait(run_id)
    # At 8 nothing better, at 10 a new best, at 12 and 14 nothing.
    assert (entry.run.status, entry.run.outer_step, entry.run.outer_steps) == ("succeeded", 14, 14)
    assert [row[0] for row in queue.curve(run_id)] == list(range(1, 15))
    assert [row[2] for row in queue.curve(run_id) if row[2]] == [2.0, 3.0, 4.0, 5.0, 1.0, 6.0, 7.0]
