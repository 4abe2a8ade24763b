"""A worker with several cores shares a run's trajectories out among a crew of processes."""

from typing import Any

import torch

from optserve_server.metatraining.crew import Crew
from optserve_server.metatraining.outer_loop import OuterLoop


def test_a_crew_that_loses_a_process_lets_the_next_worker_go_on(queue, working, monkeypatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    changes: dict[str, Any] = {
        "unroll": {"steps": 6, "truncation": 2, "trajectories": 4, "advance": 2},
        "meta_optimizer": {"tasks_per_outer_step": 4},
        "checkpoints": {"every": 3},
    }
    windows, crews = Crew.windows, []

    def killing(self: Crew, outer_step: int, *arguments: Any) -> Any:
        if self not in crews:
            crews.append(self)
        if outer_step == 5 and len(crews) == 1:
            self._members[1].kill()
            self._members[1].wait()
        return windows(self, outer_step, *arguments)

    monkeypatch.setattr(Crew, "windows", killing)
    run_id = queue.add(outer_steps=7, **changes)
    with working():
        entry = queue.wait(run_id)
    assert (entry.run.status, entry.run.error, entry.run.attempt) == ("succeeded", None, 2)
    assert len(crews) == 2
    assert all(member.returncode is not None for crew in crews for member in crew._members)
    loop = OuterLoop(queue.recipe(outer_steps=7, **changes))
    assert [row[:3] for row in queue.curve(run_id)] == [
        (one.outer_step, one.meta_loss, one.meta_loss_held_out) for one in loop
    ]
    assert all(torch.equal(weight, queue.phi(entry.versions[-1])[name]) for name, weight in loop.phi.items())
