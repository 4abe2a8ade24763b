"""Recipes: every mistake is named, with the key and the nearest right one."""

import copy
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from optserve_server import descriptions
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


BAD_TOGETHER = {"outputs": [2, 1], "data": ["clusters", "teacher-values"], "activation": ["relu"]}
"""One output is too few for clusters, and two are not."""


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
        ("architecture.kind", "lstmm", r"no architecture 'lstmm' \(did you mean 'lstm'\?\); .*, small_fc$"),
        ("architecture.hidden", 3, "did you mean 'hidden_size'"),
        ("unroll.steps", 0, r"unroll\.steps"),
        ("unroll.steps", {"low": 9}, r"unroll\.steps\.high: field required"),
        ("unroll.steps", {"low": 9, "hihg": 30}, r"unroll\.steps\.hihg: unknown key \(did you mean 'high'"),
        ("unroll.steps", {"low": 9, "high": 3}, "low is 9, but must be at most high, 3"),
        ("meta_loss.kind", "mean", r"meta_loss\.kind"),
        ("meta_optimizer.learning_rate", float("nan"), r"meta_optimizer\.learning_rate"),
        ("meta_optimizer.outer_steps", -1, r"meta_optimizer\.outer_steps"),
        ("unroll.advance", 2, r"unroll\.advance: 2 is more than unroll\.trajectories, 1"),
        (
            "unroll",
            {"trajectories": 4, "advance": 2},
            r"meta_optimizer\.tasks_per_outer_step: 3 tasks cannot",
        ),
        ("meta_loss", {"weights": [1.0] * 6}, r"meta_loss\.weights: the final loss is one number"),
        ("meta_loss", {"kind": "sum", "weights": [1.0]}, r"meta_loss\.weights: there are 1, but unroll\.steps is 6"),
        (
            "meta_loss",
            {"kind": "sum", "weights": {"first": 1, "lst": 2}},
            r"meta_loss\.weights\.lst: unknown .*'last'",
        ),
        ("meta_loss", {"kind": "sum", "weights": [0.0] * 6}, r"meta_loss\.weights: all weights are 0"),
        ("meta_loss", {"kind": "log", "weights": {"first": 0, "last": 0}}, r"meta_loss\.weights: all weights are 0"),
        ("meta_loss.floor", 0, r"meta_loss\.floor"),
        ("meta_loss.ceiling", float("inf"), r"meta_loss\.ceiling"),
        ("imitation", {"wait": 2}, r"imitation\.wait: unknown key \(did you mean 'weight'"),
        ("curriculum", {}, r"curriculum\.steps: field required"),
        ("curriculum", {"steps": [3, 3]}, r"curriculum\.steps: \[3, 3\] does not grow"),
        ("curriculum", {"steps": [3, 6]}, r"curriculum\.steps: 6 is not between 1 and 5"),
        ("curriculum", {"steps": [2]}, r"curriculum\.steps: unroll\.truncation, 3, does not divide 2"),
        ("meta_optimizer.warm_up", 4, r"meta_optimizer\.warm_up: 4 must be below outer_steps, 4"),
        (
            "meta_optimizer.schedule",
            "exponential",
            r"meta_optimizer\.final_learning_rate: an exp",
        ),
        (
            "meta_optimizer.final_learning_rate",
            1e-4,
            r"meta_optimizer\.final_learning_rate: a const",
        ),
        ("gradient.estimator", "ges", r"gradient\.estimator"),
        ("gradient.sigma", 0.1, r"gradient\.sigma: backpropagation perturbs nothing"),
        ("gradient", {"estimator": "es", "sigma": 0}, r"gradient\.sigma: input should be greater than 0"),
        ("gradient", {"estimator": "es", "pairs": 0}, r"gradient\.pairs: input should be greater"),
        ("gradient.final_sigma", 0.1, r"gradient\.final_sigma: backpropagation perturbs nothing"),
        ("tasks.0.choices", {"dimensoin": [2]}, r"tasks\.0\.choices: .*'dimensoin' \(did you mean 'dimension'"),
        ("tasks.0.choices", {"dimension": [2, 3]}, r"tasks\.0\.choices: 'dimension' is one of the parameters too"),
        ("tasks", [{"family": "quadratic", "choices": {"dimension": []}}], r"tasks\.0\.choices\.dimension: "),
        ("tasks", [{"family": "quadratic", "choices": {"dimension": [2, 0]}}], r"choices: parameters\.dimension is 0"),
        ("tasks", [{"family": "synthetic-mlp", "choices": BAD_TOGETHER}], r"tasks\.0\.choices: .*outputs is 1, but"),
        ("augmentation.hidden_los", 0.5, r"augmentation\.hidden_los: unknown key \(did you mean 'hidden_loss'"),
        ("augmentation.loss_offset", 1.5, r"augmentation\.loss_offset: input should be less"),
        ("meta_optimizer.decay", -1, r"meta_optimizer\.decay: input should be greater"),
        ("validation", {"horizons": [3]}, r"validation\.tasks: field required"),
        ("validation", {"tasks": [{"family": "quadratics"}], "horizons": [3]}, r"validation\.tasks\.0\.family: .*did"),
        (
            "validation",
            {"tasks": [{"family": "quadratic", "choices": {}}], "horizons": [3]},
            r"validation\.tasks\.0\.choices: unknown key",
        ),
        ("validation", {"tasks": [{"family": "quadratic"}], "horizons": []}, r"validation\.horizons: "),
        (
            "validation",
            {"tasks": [{"family": "quadratic"}], "horizons": [3], "patients": 3},
            r"validation\.patients: unknown key \(did you mean 'patience'",
        ),
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


@pytest.mark.parametrize(
    "gradient",
    [
        {},
        {"second_order": False},
        {"estimator": "nres", "sigma": 0.1, "pairs": 3},
        {"estimator": "es", "sigma": 0.1, "final_sigma": 0.05},
    ],
)
def test_what_a_recipe_is_written_down_as_is_that_recipe(gradient: dict[str, Any]) -> None:
    tables = {
        "tasks": [{"family": "clusters-mlp", "choices": {"hidden_sizes": [[2], []], "spread": [1, 2.5]}}],
        "meta_loss": {"kind": "sum", "weights": {"first": 0, "last": 1}},
        "imitation": {},
        "validation": {"tasks": [{"family": "quadratic", "weight": 2}], "horizons": [3, 4]},
    }
    recipe = recipes.parse({**TINY, **tables, "gradient": gradient})
    written = recipe.model_dump(mode="json")
    assert recipes.parse(written) == recipe
    own = {"sigma", "final_sigma", "pairs"} if "sigma" in gradient else {"second_order"}
    assert written["gradient"].keys() == {"estimator", "unit_norm"} | own


def test_weights_of_each_step_need_one_horizon() -> None:
    weighted = {**TINY, "meta_loss": {"kind": "sum", "weights": [1.0] * 6}}
    assert recipes.parse(weighted).meta_loss.weights == (1.0,) * 6
    for change in ({"unroll": {"steps": {"low": 3, "high": 6}}}, {"curriculum": {"steps": [3]}}):
        with pytest.raises(RecipeError, match=r"meta_loss\.weights: one number for each step needs one T"):
            recipes.parse(weighted | change)


def test_a_curriculum_lies_in_the_range_of_horizons() -> None:
    ranged = {**TINY, "unroll": {"steps": {"low": 5, "high": 20}, "truncation": 4}}
    assert recipes.parse({**ranged, "curriculum": {"steps": [7, 19]}}).curriculum is not None
    with pytest.raises(RecipeError, match=r"curriculum\.steps: 4 is not between 5 and 19"):
        recipes.parse({**ranged, "curriculum": {"steps": [4]}})


def test_every_key_is_documented() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    tables = [recipes.Recipe]
    for table in tables:
        for key, field in table.model_fields.items():
            assert re.search(rf"\| (`\w+`, )*`{key}`|\[+{key}\]|\b{key} = ", documented), key
            tables += descriptions._tables_in(field.annotation)
    assert len(tables) > 10


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_text("name = ")
    with pytest.raises(RecipeError, match=r"broken\.toml is not TOML"):
        recipes.load(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"broken\.toml is not TOML"):
        recipes.load(file)
