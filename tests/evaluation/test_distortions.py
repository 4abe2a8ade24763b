"""What optimizers are shown in the place of the truth, and how many diverge for it."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.evaluation.conftest import carried_out, entrant, plan
from tests.evaluation.test_tables import printed

from optserve_server.evaluation import fingerprints, plans, stability
from optserve_server.evaluation.documents import document
from optserve_server.evaluation.plans import PlanError
from optserve_server.optimizers import Observations
from optserve_server.optimizers.rnnprop import RNNprop


def bowl(**distortion: Any) -> dict[str, Any]:
    return {"family": "bowl", "parameters": {"curvature": 1.0}, "distortion": distortion}


def untuned_sgd(**distortion: Any) -> list[float]:
    """The losses of gradient descent at its rate of 0.001, as shares of the first."""
    losses = carried_out(plan(bowl(**distortion), untuned=["sgd"], steps=8)).curves[1].losses
    return [loss / losses[0][0] for loss in losses[0] if loss and losses[0][0]]


@pytest.mark.parametrize("key", ["gradient_scale", "loss_scale"])
def test_gradients_are_scaled_and_losses_are_measured_as_they_are(key: str) -> None:
    """f(θ_t) = (1 − lr · scale)^{2t} f(θ_0)."""
    np.testing.assert_allclose(untuned_sgd(**{key: 100.0}), 0.9 ** (2 * np.arange(9)), rtol=1e-5)
    np.testing.assert_allclose(untuned_sgd(), 0.999 ** (2 * np.arange(9)), rtol=1e-5)


def test_a_zero_gradient_lasts_from_the_first_step_to_before_the_last() -> None:
    found = untuned_sgd(gradient_scale=100.0, zero_gradient=[3, 6])
    np.testing.assert_allclose(found, 0.9 ** (2 * np.array([0, 1, 2, 3, 3, 3, 3, 4, 5])), rtol=1e-5)


def test_an_optimizer_is_told_what_the_distortion_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Observations] = []

    def recorded(self: RNNprop, phi: Any, observations: Observations, state: Any) -> Any:
        seen.append(observations)
        return torch.zeros_like(observations.gradients), state

    learned = entrant()
    monkeypatch.setattr(RNNprop, "step", recorded)
    monkeypatch.setattr(RNNprop, "coordinatewise", False)
    monkeypatch.setattr(RNNprop, "kind", "recording")
    told = {}
    for distortion in ({}, {"gradient_scale": 2.0}, {"loss_scale": 2.0}, {"told_loss": False}, {"told_horizon": False}):
        seen.clear()
        carried_out(plan(bowl(**distortion), steps=1), learned)
        (told[str(distortion)],) = seen
    plain, scaled, as_though_f_were, no_loss, no_horizon = told.values()
    assert plain.loss is not None
    torch.testing.assert_close(scaled.gradients, 2 * plain.gradients)
    torch.testing.assert_close(scaled.loss, plain.loss)
    torch.testing.assert_close(as_though_f_were.gradients, 2 * plain.gradients)
    torch.testing.assert_close(as_though_f_were.loss, 2 * plain.loss)
    assert no_loss.loss is None
    assert no_loss.horizon is not None
    assert no_horizon.horizon is None
    assert no_horizon.loss is not None


@pytest.mark.parametrize(
    ("distortion", "message"),
    [
        ({"gradient_scal": 1.0}, r"distortion\.gradient_scal: unknown key \(did you mean 'gradient_scale'"),
        ({"gradient_scale": 0.0}, r"distortion\.gradient_scale: "),
        ({"zero_gradient": [5, 5]}, r"zero_gradient: \[5, 5\] are no steps .* write \[50, 150\]"),
    ],
)
def test_a_mistake_is_named(distortion: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan(bowl(**distortion))


def test_a_distortion_is_part_of_the_plan_its_labels_and_its_fingerprints() -> None:
    chosen = plan(bowl(), bowl(gradient_scale=1e8, zero_gradient=[5, 9], told_loss=False))
    content = chosen.model_dump(mode="json")
    assert plans.parse(content) == chosen
    first, second = plans.described(content)
    assert (first.label, first.distortion) == ("bowl:curvature=1.0", {})
    assert second.label == "bowl:curvature=1.0 with gradient_scale=1e+08,zero_gradient=[5,9],told_loss=false"
    assert second.distortion == {"gradient_scale": 1e8, "zero_gradient": [5, 9], "told_loss": False}
    prints = {fingerprints.of_baseline(chosen, task, "sgd", torch.device("cpu"))[0] for task in chosen.tasks}
    assert len(prints) == 2
    del content["tasks"][0]["distortion"]  # as a plan of before there were any
    assert plans.described(content)[0] == first


def test_what_diverged_is_counted_in_all_and_by_condition() -> None:
    """Gradient descent of rate 0.001 on a bowl grows from a curvature above 2,000 on."""
    noisy = {"family": "clusters-mlp", "parameters": {"batch_size": 1, "label_noise": 0.4}}
    result = carried_out(
        plan(bowl(), bowl(loss_scale=1e4), bowl(loss_scale=1e4, told_loss=False), noisy, untuned=["sgd"])
    )
    assert str(stability.total(result, "sgd (untuned)")) == "6 of 12"
    assert {name: str(tally) for name, tally in stability.tallies(result, "sgd (untuned)").items()} == {
        "nothing special": "0 of 3",
        "losses × 10000": "6 of 6",
        "loss not told": "3 of 3",
        "batch size 1": "0 of 3",
        "label noise 40%": "0 of 3",
    }
    table = printed(result).partition("diverged")[2].partition("Ranking")[0]
    (row,) = [line.split() for line in table.splitlines() if "losses ×" in line]
    assert row == ["losses", "×", "10000", "6", "0", "6"]
    assert "| losses × 10000 | 0 of 6 | 6 of 6 |" in document(result)
    assert "| all | 0 of 12 | 6 of 12 |" in document(result)


def test_the_stress_suite_is_a_thousand_runs_of_all_conditions() -> None:
    chosen = plans.parse({"optimizers": ["mine"], "suite": "stress"})
    assert len(chosen.tasks) * chosen.seeds == 1000
    assert (chosen.baselines, chosen.cells) == ((), 40)
    tasks = plans.described(chosen.model_dump(mode="json"))
    found = {condition for task in tasks for condition in stability.conditions(task)}
    assert found == {
        "nothing special",
        "batch size 1",
        "label noise 40%",
        "gradients × 1e-08",
        "gradients × 1e+08",
        "losses × 1e-08",
        "losses × 1e+08",
        "gradient 0 for 100 steps",
        "loss not told",
        "horizon not told",
    }
    assert len({task.label for task in tasks}) == 40
    assert len({task.family for task in tasks}) >= 9


def test_small_minibatches_are_measured_on_as_many_rows_as_large_ones() -> None:
    """Of minibatches of one, sixteen would be so noisy that runs seem to diverge on which nothing moved."""
    lone = {"family": "clusters-mlp", "parameters": {"batch_size": 1, "label_noise": 0.4}}
    curves = carried_out(plan({**lone, "distortion": {"gradient_scale": 1e-30}}, untuned=["sgd"], seeds=30, steps=1))
    ends = np.array(curves.curves[1].losses)
    assert np.abs(ends[:, -1] / ends[:, 0] - 1).max() < 0.15
