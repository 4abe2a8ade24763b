"""Plans: sensible defaults, and every mistake is named."""

from typing import Any

import pytest

from optserve_server.evaluation import plans, suites
from optserve_server.evaluation.plans import PlanError


def test_one_optimizer_is_enough() -> None:
    plan = plans.parse({"optimizers": ["lstm@3"]})
    assert (plan.steps, plan.seeds, plan.baselines) == (100, 5, ("sgd", "nesterov", "rmsprop", "adam"))
    assert [task.family for task in plan.tasks] == ["quadratic", "digits-mlp"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimisers": []}, r"optimisers: unknown key \(did you mean 'optimizers'"),
        ({"tasks": [{"familly": "quadratic"}]}, r"tasks\.0\.familly: unknown key \(did you mean 'family'"),
        (
            {"tasks": [{"family": "quadratics"}]},
            r"tasks\.0\.family: there is no task family .* \(did you mean 'quadratic'",
        ),
        ({"tasks": []}, "tasks: "),
        ({"optimizers": []}, "optimizers: "),
        ({"optimizers": ["a@1", "a@1"]}, "'a@1' is there twice"),
        ({"optimizers": ["adam"]}, "'adam' is there twice"),
        ({"baselines": ["adm"]}, r"baselines: there is no baseline 'adm' \(did you mean 'adam'"),
        ({"untuned": ["prodigi"]}, r"untuned: there is no optimizer 'prodigi' \(did you mean 'prodigy'"),
        ({"untuned": ["adam", "adam"]}, r"'adam \(untuned\)' is there twice"),
        ({"steps": 0}, "steps: "),
        ({"seeds": 1001}, "seeds: "),
        ({"seed": -1}, "seed: "),
        ({"horizons": []}, "horizons: "),
        ({"horizons": [100, 50]}, r"horizons: \[100, 50\] does not grow"),
        ({"horizons": [0, 50]}, r"horizons\.0: "),
        ({"horizons": [50, 100], "steps": 50}, "steps: 50 is not the longest of the horizons; give one of the two"),
        ({"suite": "standrd"}, r"suite: there is no suite 'standrd' \(did you mean 'standard'"),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plans.parse({"optimizers": ["lstm@3"], **changes})


def test_steps_are_the_only_horizon_or_the_longest() -> None:
    for given, horizons in (({}, (100,)), ({"steps": 7}, (7,)), ({"horizons": [5, 9]}, (5, 9))):
        plan = plans.parse({"optimizers": ["lstm@3"], **given})
        assert (plan.steps, plan.horizons) == (horizons[-1], horizons)
        assert plans.parse(plan.model_dump(mode="json")) == plan
        assert [task.steps for task in plans.described(plan.model_dump(mode="json"))] == [*horizons, *horizons]


def test_the_standard_suite_is_broad_and_what_is_given_beside_it_wins() -> None:
    plan = plans.parse({"optimizers": ["lstm@3"], "suite": "standard"})
    assert (plan.horizons, plan.seeds) == ((100, 500, 2000), 5)
    assert plan.baselines == ("adam", "adamw", "adam-cosine", "momentum", "schedule-free-adamw")
    assert len(plan.tasks) >= 20
    assert len({task.family for task in plan.tasks}) >= 10
    assert len({plans.label(task.family, task.parameters) for task in plan.tasks}) == len(plan.tasks)
    assert {"adam", "soap", "ademamix", "prodigy"} <= set(plan.untuned)
    assert plan.cells == len(plan.tasks) * 3 * (6 + len(plan.untuned))
    assert plans.parse(plan.model_dump(mode="json")) == plan
    short = plans.parse({"optimizers": ["lstm@3"], "suite": "standard", "steps": 50, "baselines": ["sgd"]})
    assert (short.horizons, short.baselines, short.tasks) == ((50,), ("sgd",), plan.tasks)


def test_every_suite_is_a_plan_of_keys_that_suites_have() -> None:
    for name in suites.names():
        assert set(suites.read(name)) <= set(plans.SUITE_KEYS)
        plans.parse({"optimizers": ["lstm@3"], "suite": name})


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("digits-mlp", {}),
        (
            "digits-mlp:hidden_sizes=[20,20],activation=relu,batch_size=64",
            {"hidden_sizes": [20, 20], "activation": "relu", "batch_size": 64},
        ),
        ("digits-mlp:hidden_sizes=[]", {"hidden_sizes": []}),
    ],
)
def test_a_task_on_the_command_line_and_its_label(text: str, parameters: dict[str, Any]) -> None:
    task = plans.parse_task(text)
    assert task == {"family": "digits-mlp", "parameters": parameters}
    assert plans.label(**task) == text


def test_a_parameter_without_a_value_is_named() -> None:
    with pytest.raises(PlanError, match=r"gives 'activation' no value; write digits-mlp:activation=VALUE"):
        plans.parse_task("digits-mlp:activation")
