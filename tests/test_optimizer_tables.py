"""`make tables`: what is evaluated ends up in README.md and docs/optimizers.md, and only between their markers."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from optserve_server.optimizers import build, weights

ROOT = Path(__file__).parents[1]
TASKS = [
    {"family": "quadratic", "parameters": {"dimension": 2}},
    {"family": "logistic-regression", "parameters": {"data": "iris", "rows": 5}},
]
STANDARD = {
    "tasks": TASKS,
    "horizons": [2, 3],
    "seeds": 2,
    "baselines": ["adam", "adam-cosine", "schedule-free-adamw"],
    "untuned": ["adam", "prodigy"],
}
STRESS = {"tasks": [{**TASKS[0], "distortion": {"gradient_scale": 1e8}}], "steps": 2, "seeds": 3, "baselines": []}
SUBJECTS = """
[[optimizers]]
name = "mine"
weights = "mine.safetensors"
[[ablations]]
what = "without the loss"
distortion = { told_loss = false }
[[ablations]]
what = "untrained"
weights = "other.safetensors"
"""


def test_another_phi_is_told_apart_by_the_smallest_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make champion` ends with."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.optimizers.same import differences

    phi = build({"kind": "small_fc"}).initial_phi(torch.Generator().manual_seed(0))
    name = min(phi)
    assert differences(phi, {key: value.clone() for key, value in phi.items()}) == []
    changed = torch.nextafter(phi[name], phi[name] + 1)
    (line,) = differences(phi, {**phi, name: changed})
    assert line.startswith(f"{name} differs by up to ")
    zeros = torch.zeros_like(phi[name])
    assert differences({name: zeros}, {name: -zeros}) == [f"{name} differs by up to 0.0e+00"]
    assert differences(phi, {**phi, "more": changed}) == ["more is in one of them only"]
    (line,) = differences(phi, {**phi, name: changed.flatten()[:1]})
    assert line.endswith(" in the other")


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    import benchmarks.optimizers.__main__ as tables

    return tables


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """README.md and docs/optimizers.md as they are, and two optimizers."""
    (tmp_path / "docs").mkdir()
    for page in ("README.md", "docs/optimizers.md"):
        (tmp_path / page).write_text((ROOT / page).read_text(encoding="utf-8"), encoding="utf-8")
    for seed, name in enumerate(("mine", "other")):
        optimizer = build({"kind": "small_fc", "step_multiplier": 0.01 + 0.05 * seed})
        phi = optimizer.initial_phi(torch.Generator().manual_seed(seed))
        (tmp_path / f"{name}.safetensors").write_bytes(weights.encode(optimizer, phi))
    (tmp_path / "subjects.toml").write_text(SUBJECTS)
    return tmp_path


def outside(page: str) -> str:
    return re.sub(r"(<!-- (\w+): written by make tables -->).*?(<!-- \2: end -->)", r"\1\3", page, flags=re.DOTALL)


def block(page: str, name: str) -> list[list[str]]:
    """The cells of a table."""
    found = re.search(rf"<!-- {name}: written by make tables -->(.*?)<!-- {name}: end -->", page, re.DOTALL)
    assert found is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].split("\n") if line[:1] == "|"]


def test_the_pages_get_the_figures_of_both_suites(tables: ModuleType, checkout: Path) -> None:
    costs = checkout / "costs.json"
    cost = {"optimizer": "mine", "served": True, "state_bytes": 16.2, "ratios": {"100,000": 2.0, "1,000,000": 3.14}}
    costs.write_text(json.dumps({"costs": [cost]}))
    chosen = tables.subjects.read(checkout / "subjects.toml")
    before = {page: (checkout / page).read_text(encoding="utf-8") for page in ("README.md", "docs/optimizers.md")}
    cut = {"nothing": (checkout / "mine.safetensors").read_bytes()}
    tables.write_tables(chosen, cut, STANDARD, STRESS, checkout, costs, 1)
    after = {page: (checkout / page).read_text(encoding="utf-8") for page in before}
    assert {page: outside(text) for page, text in after.items()} == {
        page: outside(text) for page, text in before.items()
    }

    header, _, *rows = block(after["docs/optimizers.md"], "optimizers")
    assert header[1] == "loss ÷ that of Adam at 2 · 3"
    named = {row[0]: row for row in rows}
    assert set(named) == {
        *("**mine**", "adam (tuned)", "adam-cosine (tuned)", "schedule-free-adamw (tuned)"),
        *("adam (untuned)", "prodigy (untuned)"),
    }
    mine = dict(zip(header, named["**mine**"], strict=True))
    result = expected(tables, checkout)
    for column, baseline in zip(header[1:4], ("adam", "adam-cosine", "schedule-free-adamw"), strict=True):
        ratios = [
            one.ratio
            for one in result.comparisons
            if one.baseline == baseline and one.optimizer == "mine" and one.steps and one.family is None
        ]
        assert mine[column] == " · ".join(f"{ratio:.2f}" for ratio in ratios)
    assert mine["diverged"] == str(tables.rows.stability.total(result, "mine"))
    assert mine["under stress"].endswith(" of 3")
    assert (mine["bytes"], mine["step of 100,000 · 1,000,000"]) == ("16", "2.0 · 3.1")
    assert named["adam (tuned)"][1] == "–"
    under_stress = mine["under stress"]
    stress = block(after["docs/optimizers.md"], "stress")
    assert stress == [["condition", "mine"], ["---", "---"], ["gradients × 1e+08", under_stress], ["all", under_stress]]
    ablations = block(after["docs/optimizers.md"], "ablations")
    assert [row[0] for row in ablations[2:]] == ["without the loss", "untrained"]
    assert ablations[3][1] != "1.00 · 1.00"
    ingredients = block(after["docs/optimizers.md"], "ingredients")
    assert ingredients[2][:2] == ["nothing", mine[header[1]]]
    short = block(after["README.md"], "optimizers")
    assert short[2][:2] == named["**mine**"][:2]
    assert len(short) == len(rows) + 2
    assert (checkout / "docs" / "optimizers.png").stat().st_size > 10_000


def expected(tables: ModuleType, checkout: Path) -> Any:
    plan = {"mine": (checkout / "mine.safetensors").read_bytes()}
    return tables.Evaluation(STANDARD, plan).carry_out()


def test_a_page_without_the_block_is_named_and_left_alone(tables: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- stress: written by make tables -->\nno end\n")
    with pytest.raises(ValueError, match=r"page\.md has 0 blocks from <!-- stress: written by make tables -->"):
        tables.blocks.rewrite(page, {"stress": ["x"]})
    assert page.read_text() == "<!-- stress: written by make tables -->\nno end\n"


def test_what_the_tables_are_about_is_in_the_repository(tables: ModuleType) -> None:
    found = tables.subjects.weights(tables.subjects.read())
    assert found
    for data in found.values():
        assert weights.decode(data)[0].learned


def test_each_ingredient_is_left_out_of_the_recipe_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the recipes that `make ablations` meta-trains can be run, and differs from the whole one."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.optimizers import ingredients

    from optserve_server.metatraining import recipes

    chosen = ingredients.read()
    whole, *others = [recipes.parse(cut.recipe) for cut in ingredients.cuts(chosen)]
    assert len(others) == chosen.seeds - 1 + len(chosen.ablations)
    for other in others:
        assert other.meta_optimizer == whole.meta_optimizer
        assert other != whole
