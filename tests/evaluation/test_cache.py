"""What has been computed is found again, and only as long as nothing that it depends on has changed."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evaluation.conftest import carried_out, entrant, plan

from optserve.wire.evaluations import Curves
from optserve_server import tasks
from optserve_server.evaluation import fingerprints
from optserve_server.evaluation.cache import Cache
from optserve_server.evaluation.evaluate import Progress, evaluate, to_end
from optserve_server.evaluation.plans import Plan
from optserve_server.evaluation.rules import BASELINES

CPU = torch.device("cpu")


def with_cache(cache: Cache, chosen: Plan, name: str = "learned") -> tuple[list[Curves], int]:
    """The curves, and how many windows were computed."""
    told: list[Progress] = []

    def tell(progress: Progress) -> None:
        told.append(progress)
        if progress.curves is not None:
            cache.keep(progress.fingerprint, progress.curves)

    found = to_end(evaluate(chosen, [entrant(name)], recall=cache.recall), tell)
    return found.curves, sum(progress.step > 0 and progress.curves is None for progress in told)


def test_what_was_interrupted_goes_on_and_what_is_complete_is_not_computed(tmp_path: Path) -> None:
    cache, chosen = (
        Cache(tmp_path / "of" / "mine"),
        plan("bowl", "quadratic", horizons=[3, 5], baselines=["sgd", "adam"]),
    )
    whole = carried_out(chosen).curves
    assert with_cache(cache, plan("quadratic", horizons=[3, 5], baselines=["sgd"]))[1] > 0
    curves, windows = with_cache(cache, chosen)
    assert curves == whole
    assert windows > 0
    assert with_cache(cache, chosen) == (whole, 0)
    renamed, windows = with_cache(cache, plan("quadratic", horizons=[3, 5], optimizers=["other"]), "other")
    assert windows == 0
    assert [(one.task, one.optimizer) for one in renamed] == [(0, "other"), (1, "other")]
    assert with_cache(cache, plan("bowl", "quadratic", horizons=[3, 5], baselines=["sgd", "adam"], cache=False))[1] > 0
    assert not list(tmp_path.rglob("*.new"))


def test_a_loss_that_is_not_finite_survives(tmp_path: Path) -> None:
    (curves,) = carried_out(plan({"family": "bowl", "parameters": {"slope": -1.0}}, steps=3)).curves
    exploded = dataclasses.replace(curves, median=[1.0, None], divergence=1.0)
    Cache(tmp_path).keep("ab" * 32, exploded)
    assert Cache(tmp_path).recall("ab" * 32) == exploded
    assert Cache(tmp_path).recall("cd" * 32) is None


def of_adam(chosen: Plan) -> str:
    return fingerprints.of_baseline(chosen, chosen.tasks[0], "adam", CPU)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": 4},
        {"seed": 1},
        {"steps": 6},
        {"horizons": [5, 9]},
        {"tasks": [{"family": "tabular-mlp", "parameters": {"batch_size": 31}}]},
        {"tasks": [{"family": "quadratic"}]},
    ],
)
def test_a_fingerprint_is_of_all_that_the_plan_says(changes: dict[str, Any]) -> None:
    before = of_adam(plan("tabular-mlp"))
    assert of_adam(plan("tabular-mlp")) == before
    assert of_adam(plan({"family": "tabular-mlp", "parameters": {"batch_size": 32}}, baselines=["sgd"])) == before
    assert of_adam(plan("tabular-mlp", **changes)) != before


def test_a_fingerprint_is_of_the_optimizer_and_of_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = plan("tabular-mlp")
    of_baselines = {fingerprints.of_baseline(chosen, chosen.tasks[0], name, CPU)[0] for name in BASELINES}
    learned = [entrant(), entrant(output_scale=0.2)]
    of_learned = {
        fingerprints.of_weights(chosen, chosen.tasks[0], one.optimizer, one.sha256, CPU)[0] for one in learned
    }
    assert len(of_baselines | of_learned) == len(BASELINES) + 2
    before = of_adam(chosen)
    monkeypatch.setattr(fingerprints, "version", lambda package: "0")
    assert of_adam(chosen) != before


def test_a_fingerprint_is_of_the_code_that_runs_and_of_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Comments change nothing; code does, also of what a family imports of its room."""
    chosen = plan("tabular-mlp")
    before = of_adam(chosen)
    specs = fingerprints.find_spec

    def edited(module: str, change: str) -> str:
        file = tmp_path / "edited.py"
        spec = specs(module)
        assert spec is not None
        assert spec.origin is not None
        file.write_text(Path(spec.origin).read_text(encoding="utf-8") + change)
        other = dataclasses.make_dataclass("Spec", ["origin", "submodule_search_locations"])(str(file), None)
        monkeypatch.setattr(fingerprints, "find_spec", lambda name: other if name == module else specs(name))
        for cached in (fingerprints._code, fingerprints._parsed, fingerprints._with_imports):
            cached.cache_clear()
        return of_adam(chosen)

    for module in (
        "optserve_server.tasks.tabular_mlp",
        "optserve_server.tasks.networks",
        "optserve_server.optimizers.adam",
        "optserve_server.optimizers.moments",
        "optserve_server.evaluation.baselines",
        "optserve_server.metatraining.trajectories",
        "optserve_server.metatraining.differentiation",
        "optserve_server.metatraining.captured",
    ):
        assert edited(module, "\n# A word.\n") == before
        assert edited(module, "\nWORD = 1\n") != before
    for module in (
        "optserve_server.tasks.digits_mlp",
        "optserve_server.optimizers.hierarchical",
        "optserve_server.metatraining.outer_loop",
    ):
        assert edited(module, "\nWORD = 1\n") == before
    for cached in (fingerprints._code, fingerprints._parsed, fingerprints._with_imports):
        cached.cache_clear()


def test_families_of_other_packages_have_fingerprints_too() -> None:
    assert "bowl" in tasks.families().usable
    assert (
        of_adam(plan("bowl"))
        == of_adam(plan("bowl"))
        != of_adam(plan({"family": "bowl", "parameters": {"slope": 1.0}}))
    )
