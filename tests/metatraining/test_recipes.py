"""Recipes: every mistake is named, with the key and the nearest right one."""

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest

from optserve_server.metatraining import recipes
from optserve_server.metatraining.recipes import RecipeError

TINY: dict[str, Any] = {
    "name": "tiny",
    "architecture": {"kind": "lstm", "hidden_size": 4, "layers": 1},
    "tasks": [{"family": "quadratic", "parameters": {"dimension": 2}}],
    "unroll": {"steps": 6, "truncation": 3},
    "meta_optimizer": {"kind": "adam", "outer_steps": 4, "tasks_per_outer_step": 3},
}

CONTRACT = """
name = "lstm"
seed = 0
start_from = "lstm@3"
[architecture]
kind = "lstm"
hidden_size = 20
layers = 2
preprocessing = "log-sign"
output_scale = 0.1
[[tasks]]
family = "digits-mlp"
weight = 1.0
parameters = { hidden_sizes = [20], activation = "sigmoid", batch_size = 128 }
[unroll]
steps = 100
truncation = 20
[meta_loss]
kind = "final"
[gradient]
estimator = "backpropagation"
second_order = true
[meta_optimizer]
kind = "gradient-descent"
learning_rate = 0.001
clip_norm = 1.0
outer_steps = 2000
tasks_per_outer_step = 16
[checkpoints]
every = 200
"""


def test_every_documented_key_is_taken() -> None:
    recipe = recipes.parse(tomllib.loads(CONTRACT))
    assert recipe.unroll.truncation == 20
    assert recipe.meta_optimizer.tasks_per_outer_step == 16


def changed(path: str, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(TINY)
    table: Any = content
    *tables, key = path.split(".")
    for part in tables:
        table = table[int(part)] if part.isdigit() else table.setdefault(part, {})
    table[key] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("unrol", {}, r"unrol: unknown key \(did you mean 'unroll'"),
        ("unroll.truncaton", 3, r"unroll\.truncaton: unknown key \(did you mean 'truncation'"),
        ("meta_optimizer.lr", 3, r"meta_optimizer\.lr: unknown key"),
        ("tasks.0.familly", "x", r"tasks\.0\.familly: unknown key \(did you mean 'family'"),
        ("tasks.0.family", "quadratics", r"tasks\.0\.family: there is no task family .* \(did you mean 'quadratic'"),
        ("tasks.0.parameters", {"dim": 3}, r"tasks\.0\.parameters: family 'quadratic' has no parameter 'dim'"),
        ("unroll.truncation", 4, r"unroll\.truncation: 4 does not divide unroll\.steps, 6; 3 does"),
        ("unroll.truncation", 100, r"unroll\.truncation: 100 does not divide unroll\.steps, 6; 6 does"),
        ("tasks", [], "tasks: "),
        ("architecture", {"kind": "adam"}, "architecture: 'adam' has no weights to meta-train"),
        ("architecture.hidden", 3, "did you mean 'hidden_size'"),
        ("unroll.steps", 0, r"unroll\.steps"),
        ("unroll.steps", {"low": 9}, r"unroll\.steps\.high: field required"),
        ("unroll.steps", {"low": 9, "hihg": 30}, r"unroll\.steps\.hihg: unknown key \(did you mean 'high'"),
        ("unroll.steps", {"low": 9, "high": 3}, "low is 9, but must be at most high, 3"),
        ("meta_loss.kind", "mean", r"meta_loss\.kind"),
        ("meta_optimizer.learning_rate", float("nan"), r"meta_optimizer\.learning_rate"),
        ("meta_optimizer.outer_steps", -1, r"meta_optimizer\.outer_steps"),
        ("gradient.estimator", "ges", r"gradient\.estimator"),
        ("gradient.sigma", 0.1, r"gradient\.sigma: backpropagation perturbs nothing"),
        ("gradient", {"estimator": "es", "sigma": 0}, r"gradient\.sigma: input should be greater than 0"),
        ("gradient", {"estimator": "es", "pairs": 0}, r"gradient\.pairs: input should be greater"),
        (
            "gradient",
            {"estimator": "es", "second_order": False},
            r"gradient\.second_order: only backprop",
        ),
        ("name", "Upper Case", "name: "),
        ("name", "..", r"name: '\.\.' cannot be a name"),
        ("name", "adam", "name: 'adam' is designed by hand"),
        ("seed", -1, "seed: "),
    ],
)
def test_a_mistake_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipes.parse(changed(path, value))


@pytest.mark.parametrize("gradient", [{}, {"second_order": False}, {"estimator": "nres", "sigma": 0.1, "pairs": 3}])
def test_what_a_recipe_is_written_down_as_is_that_recipe(gradient: dict[str, Any]) -> None:
    recipe = recipes.parse({**TINY, "gradient": gradient})
    written = recipe.model_dump(mode="json")
    assert recipes.parse(written) == recipe
    assert written["gradient"].keys() == {"estimator", "second_order"} if "sigma" not in gradient else gradient.keys()


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_text("name = ")
    with pytest.raises(RecipeError, match=r"broken\.toml is not TOML"):
        recipes.load(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"broken\.toml is not TOML"):
        recipes.load(file)
