"""Optimizers at their published defaults: what a plain training loop with them computes, beside the tuned ones."""

import math
from typing import Any

import numpy as np
import pytest
import pytorch_optimizer
import schedulefree
import torch
from tests.evaluation.conftest import carried_out, entrant, plan
from tests.evaluation.test_tables import printed

from optserve_server.evaluation import fingerprints
from optserve_server.evaluation.documents import document
from optserve_server.evaluation.plans import UNTUNED
from optserve_server.metatraining.trajectories import draw_groups
from optserve_server.tasks.base import unflatten

CPU = torch.device("cpu")
CONVOLUTIONS = {"family": "digits-conv", "parameters": {"channels": [2], "batch_size": 32}}
DIGITS = {"family": "digits-mlp", "parameters": {"hidden_sizes": [5], "batch_size": 8}}
PUBLISHED: dict[str, Any] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "schedule-free-adamw": schedulefree.AdamWScheduleFree,
    "soap": pytorch_optimizer.SOAP,
    "ademamix": pytorch_optimizer.AdEMAMix,
    "prodigy": pytorch_optimizer.Prodigy,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_losses_are_those_of_a_pytorch_loop_over_tensors_of_their_shapes(
    name: str,
) -> None:
    chosen = plan(CONVOLUTIONS, steps=60, untuned=[name], seeds=2)
    curves = carried_out(chosen).curves[1]
    generator = torch.Generator().manual_seed(2_000_003)
    (group,) = draw_groups(chosen.tasks, [2], entrant().optimizer, generator, "held-out")
    drawn = [group.family.batch(generator, group.task_data, 2) for _ in range(16 + 50)]
    batches = drawn[16:]  # the first ones are of the initial loss
    for seed in range(2):
        data = {key: value[seed] for key, value in group.task_data.items()}
        parts = unflatten(group.theta[seed], group.family.shapes).values()
        parameters = [torch.nn.Parameter(part.clone()) for part in parts]
        optimizer = PUBLISHED[name](parameters)
        if name == "schedule-free-adamw":
            optimizer.train()
        losses = []
        for batch in batches:
            theta = torch.cat([parameter.flatten() for parameter in parameters])
            loss = group.family.loss(theta, data, {key: value[seed] for key, value in batch.items()})
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        np.testing.assert_allclose(curves.losses[seed][1:50], losses[1:], rtol=1e-3)
    assert curves.untuned
    assert not curves.baseline
    assert curves.learning_rate == (
        optimizer.param_groups[0]["lr"] if name not in ("soap", "ademamix", "prodigy") else None
    )


def test_tuned_and_untuned_ones_of_a_kind_stand_beside_each_other() -> None:
    chosen = plan("bowl", DIGITS, horizons=[3, 5], baselines=["adam"], untuned=["adam", "soap"])
    result = carried_out(chosen)
    assert len(result.curves) == chosen.cells == 2 * 2 * 4
    assert [one.optimizer for one in result.curves[:4]] == ["learned", "adam", "adam (untuned)", "soap (untuned)"]
    assert {(one.optimizer, one.baseline) for one in result.comparisons} == {
        (name, "adam") for name in ("learned", "adam (untuned)", "soap (untuned)")
    }
    (tuned, untuned) = (one.median[-1] for one in result.curves[1:3])
    assert tuned is not None
    assert untuned is not None
    assert tuned < untuned
    shown = printed(result)
    assert "adam: final loss as a multiple" not in shown
    for name in ("adam (untuned)", "soap (untuned)"):
        rows = [
            row.split() for row in shown.partition("Untuned")[2].partition("Ranking")[0].splitlines() if name in row
        ]
        assert [row[3] for row in rows] == ["all", "3", "5"]
    assert "| task | steps | learned | adam | adam (untuned) | soap (untuned) |" in document(result)


def test_a_loop_that_overflows_has_diverged_and_the_others_go_on() -> None:
    """Curvature 1e30: SOAP's preconditioner of the squared gradients is infinite at the first step."""
    steep = {"family": "bowl", "parameters": {"curvature": 1e30}}
    curves = carried_out(plan(steep, untuned=["soap"], steps=30)).curves
    assert curves[1].divergence == 1.0
    assert curves[1].median[-1] is None
    assert carried_out(plan("bowl", untuned=["soap"], steps=30)).curves[1].divergence == 0.0


def test_fingerprints_are_of_the_kind_and_the_version_of_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = plan("tabular-mlp", baselines=["adam"])

    def of(name: str) -> str:
        return fingerprints.of_untuned(chosen, chosen.tasks[0], name, CPU)[0]

    before = {name: of(name) for name in UNTUNED}
    tuned = fingerprints.of_baseline(chosen, chosen.tasks[0], "adam", CPU)
    assert len({*before.values(), *tuned}) == len(UNTUNED) + 1
    versions = fingerprints.version
    monkeypatch.setattr(
        fingerprints, "version", lambda package: "0" if package == "pytorch-optimizer" else versions(package)
    )
    assert {name for name in UNTUNED if of(name) != before[name]} == {"soap", "ademamix", "prodigy"}


def test_an_optimizer_that_knows_the_horizon_has_a_loop_for_each() -> None:
    curves = carried_out(plan("bowl", horizons=[3, 60], untuned=["adam-cosine"])).curves
    alone = carried_out(plan("bowl", horizons=[60], untuned=["adam-cosine"])).curves
    assert curves[3].median[-1] == alone[1].median[-1]
    assert math.isfinite(curves[1].median[-1] or math.inf)
