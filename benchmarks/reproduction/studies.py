"""What is reproduced: an optimizer meta-trained by a recipe, tried on tasks for so many steps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from optserve.wire.evaluations import EvaluationResult
from optserve_server.evaluation import plans
from optserve_server.evaluation.competitors import Entrant
from optserve_server.evaluation.evaluate import evaluate, to_end
from optserve_server.evaluation.plans import Plan

HERE = Path(__file__).parent
BASELINES = ("sgd", "rmsprop", "adam", "nesterov")  # the paper's: SGD, RMSprop, ADAM, NAG


@dataclass(frozen=True)
class Study:
    """One picture; `recipe` is the file in this folder that the optimizer is meta-trained by, `tasks` have titles."""

    name: str
    title: str
    recipe: str
    tasks: dict[str, dict[str, Any]]
    steps: int
    seeds: int

    def plan(self, optimizer: str) -> Plan:
        """The evaluation that this is."""
        return plans.parse(
            {
                "optimizers": [optimizer],
                "tasks": list(self.tasks.values()),
                "steps": self.steps,
                "seeds": self.seeds,
                "baselines": list(BASELINES),
            }
        )


def _perceptron(*hidden_sizes: int, activation: str = "sigmoid") -> dict[str, Any]:
    return {"family": "digits-mlp", "parameters": {"hidden_sizes": list(hidden_sizes), "activation": activation}}


_QUADRATICS = {"10-dimensional quadratics": {"family": "quadratic", "parameters": {"dimension": 10}}}
_PERCEPTRONS = {
    "20 sigmoid units": _perceptron(20),
    "40 sigmoid units": _perceptron(40),
    "two layers of 20 sigmoid units": _perceptron(20, 20),
    "20 ReLU units": _perceptron(20, activation="relu"),
}

STUDIES = (
    Study("quadratics-100", "Quadratics, 100 steps", "quadratic.toml", _QUADRATICS, steps=100, seeds=100),
    Study("quadratics-200", "Quadratics, 200 steps", "quadratic.toml", _QUADRATICS, steps=200, seeds=100),
    Study("perceptrons-100", "Perceptrons on digits, 100 steps", "perceptron.toml", _PERCEPTRONS, steps=100, seeds=20),
    Study("perceptrons-200", "Perceptrons on digits, 200 steps", "perceptron.toml", _PERCEPTRONS, steps=200, seeds=20),
)


def carry_out(study: Study, weights_file: Path) -> EvaluationResult:
    """Evaluate the optimizer of a weights file as the study says."""
    torch.set_num_threads(1)
    plan = study.plan(weights_file.stem)
    return to_end(evaluate(plan, [Entrant.read(weights_file.stem, weights_file.read_bytes())]))
