import json

import pytest

from optserve_server.registry import optimizers
from optserve_server.registry.differences import differences


@pytest.fixture
def compared(database, weights_file):
    """Adds two versions with these recipes and compares them: the paths with what stood and stands there."""

    def compare(*recipes, kinds=("lstm", "lstm")):
        with database.session(write=True) as db_session:
            versions = [
                optimizers.add_version(
                    db_session,
                    f"o{seed}",
                    weights_file(seed, kind, **({} if recipe is None else {"recipe": json.dumps(recipe)})),
                )
                for seed, (kind, recipe) in enumerate(zip(kinds, recipes, strict=True))
            ]
        with database.session() as db_session:  # as the database gives them back
            before, after = (optimizers.get_version(db_session, one.optimizer.name, 1) for one in versions)
            return [(one.path, one.before, one.after) for one in differences(before, after)]

    return compare


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ({"seed": 1}, {"seed": 1}, []),
        ({"seed": 1}, {"seed": 2}, [("recipe.seed", 1, 2)]),
        ({"rate": 1}, {"rate": 1.0}, []),
        ({"first": 1}, {"first": True}, [("recipe.first", 1, True)]),
        ({"b": 1, "a": {"x": [1, 2]}}, {"b": 2, "a": {"x": [1]}}, [("recipe.a.x", [1, 2], [1]), ("recipe.b", 1, 2)]),
        ({"clip": None}, {}, []),
        ({}, {"clip": {"norm": 1}}, [("recipe.clip", None, {"norm": 1})]),
        (
            {"tasks": [{"family": "quadratic", "weight": 1}]},
            {"tasks": [{"family": "quadratic", "weight": 2}, {"family": "digits-mlp"}]},
            [("recipe.tasks[0].weight", 1, 2), ("recipe.tasks[1]", None, {"family": "digits-mlp"})],
        ),
        ({"seed": 1}, None, [("recipe", {"seed": 1}, None)]),
        (None, None, []),
    ],
)
def test_recipes_are_compared_value_by_value(compared, before, after, found):
    assert compared(before, after) == found


def test_architectures_are_compared_once(compared):
    recipes = [{"architecture": {"kind": kind}} for kind in ("lstm", "rnnprop")]
    found = compared(*recipes, kinds=("lstm", "rnnprop"))
    assert ("architecture.kind", "lstm", "rnnprop") in found
    assert [path for path, _, _ in found if not path.startswith("architecture.")] == []
