"""A plan that needs more memory than there is is refused, and nothing is allocated to find out."""

import json
import subprocess
import sys
import time
from typing import Any

import pytest
from tests.evaluation.conftest import entrant, plan

from optserve_server.evaluation import memory, plans
from optserve_server.evaluation.plans import PlanError
from optserve_server.metatraining.memory import PROCESS_BYTES

GIB = 2**30
RUN = """
import json, resource, sys, torch
torch.set_num_threads(1)
from optserve_server.evaluation import plans
from optserve_server.evaluation.competitors import Entrant
from optserve_server.evaluation.evaluate import evaluate, to_end
from optserve_server.optimizers import build, weights
optimizer = build({"kind": "rnnprop"})
data = weights.encode(optimizer, optimizer.initial_phi(torch.Generator()))
to_end(evaluate(plans.parse(json.loads(sys.argv[1])), [Entrant.read("learned", data)]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def measured_bytes(content: dict[str, Any]) -> int:
    # From a small process: what a fork has of its parent's memory counts as its own until it runs something else.
    script = [sys.executable, "-c", RUN, json.dumps(content)]
    launcher = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", launcher, *script], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_the_estimate_is_near_the_measured_peak() -> None:
    task = {"family": "digits-mlp", "parameters": {"hidden_sizes": [256, 256], "batch_size": 32}}
    content = {"optimizers": ["learned"], "tasks": [task], "steps": 2, "seeds": 5, "baselines": []}
    chosen = plans.parse(content)
    estimate = memory._task_bytes(chosen, 0, [entrant(hidden_size=20, layers=2)])
    measured = measured_bytes(content)
    assert measured > 1.5 * PROCESS_BYTES  # else it would be of the process alone
    assert estimate == pytest.approx(measured, rel=0.5), f"{estimate:,} estimated, {measured:,} measured"


def test_a_giant_is_refused_and_its_task_named() -> None:
    giant = {"family": "digits-mlp", "parameters": {"hidden_sizes": [1024] * 8}}
    for baselines in ([], ["adam"]):
        chosen = plan("quadratic", giant, seeds=1000, baselines=baselines)
        with pytest.raises(PlanError, match=r"tasks\.1: 1000 seeds of digits-mlp:hidden_sizes=\[1024,.* GiB") as caught:
            memory.require_room(chosen, [entrant()], 16 * GIB)
        assert caught.value.path == "tasks.1"


def test_long_curves_of_many_loops_count_too() -> None:
    chosen = plan("quadratic", steps=1_000_000, seeds=1000, baselines=["adam"])
    with pytest.raises(PlanError, match="fewer steps"):
        memory.require_room(chosen, [entrant()], 16 * GIB)


def test_usual_plans_have_room_and_wait_for_nothing() -> None:
    begun = time.process_time()
    for suite in ("standard", "stress"):
        memory.require_room(plans.parse({"optimizers": ["learned"], "suite": suite}), [entrant()], 4 * GIB)
    assert time.process_time() - begun < 1


def test_what_the_guess_cannot_tell_the_rehearsal_can(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = plan({"family": "digits-mlp", "parameters": {"hidden_sizes": [64]}}, seeds=50, baselines=["adam"])
    assert memory._guess(chosen, chosen.tasks[0]) > GIB
    memory.require_room(chosen, [entrant()], GIB)


def test_a_family_on_which_a_step_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here one whose shapes depend on its numbers."""
    from optserve_server.tasks.quadratic import Quadratic

    monkeypatch.setattr(Quadratic, "loss", lambda _, theta, task, batch: theta[theta > 0].sum())
    with pytest.raises(PlanError, match=r"(?s)tasks\.1: a step on quadratic raises .*docs/tasks\.md"):
        memory.require_room(plan("bowl", "quadratic"), [entrant()], PROCESS_BYTES)
