"""The weight files that ship are what their recipes make."""

import json
from pathlib import Path

import pytest

from optserve_server.metatraining import memory, recipes
from optserve_server.metatraining.outer_loop import OuterLoop
from optserve_server.optimizers import weights
from optserve_server.resources import recipes_directory

FILES = sorted(recipes_directory().glob("*.safetensors"))
EVERY = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def test_three_learned_optimizers_ship() -> None:
    assert {file.stem for file in FILES} == {"hierarchical", "lstm-quadratic", "rnnprop-digits"}


@pytest.mark.parametrize("file", sorted(recipes_directory().glob("*.toml")), ids=lambda file: file.stem)
def test_every_recipe_that_ships_can_be_run(file: Path) -> None:
    recipe = recipes.load(file)
    assert memory.estimate_bytes(recipe) < 2 * 2**30


@EVERY
def test_the_metadata_tells_where_the_weights_came_from(file: Path) -> None:
    optimizer, _, metadata = weights.decode(file.read_bytes())
    recipe = recipes.load(file.with_suffix(".toml"))
    assert recipes.parse(json.loads(metadata["recipe"])) == recipe
    assert optimizer == recipe.optimizer()
    assert metadata["optimizer"] == recipe.name
    assert metadata["seed"] == str(recipe.seed)
    assert metadata["torch"].startswith("2.")
    losses, metrics = json.loads(metadata["meta_losses"]), json.loads(metadata["metrics"])
    assert len(losses) == recipe.meta_optimizer.outer_steps
    assert metrics["outer_step"] <= len(losses)


@EVERY
def test_the_first_outer_steps_find_the_recorded_curve(file: Path) -> None:
    _, _, metadata = weights.decode(file.read_bytes())
    loop = iter(OuterLoop(recipes.load(file.with_suffix(".toml"))))
    found = [next(loop).meta_loss for _ in range(4)]
    assert found == pytest.approx(json.loads(metadata["meta_losses"])[:4], rel=1e-3)
