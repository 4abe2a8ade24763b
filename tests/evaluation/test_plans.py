"""Plans: sensible defaults, and every mistake is named."""

from typing import Any

import pytest

from optserve_server.evaluation import plans
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
        ({"steps": 0}, "steps: "),
        ({"seeds": 1001}, "seeds: "),
        ({"seed": -1}, "seed: "),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plans.parse({"optimizers": ["lstm@3"], **changes})


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
