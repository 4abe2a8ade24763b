"""Evaluations over HTTP, on a server without workers: asked for, listed, read, cancelled."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

import optserve
from optserve import errors
from optserve_server.evaluation.competitors import Entrant
from optserve_server.evaluation.evaluate import evaluate
from optserve_server.evaluation.plans import parse
from optserve_server.registry import evaluations, leases, optimizers
from optserve_server.registry.database import Database
from optserve_server.registry.models import Evaluation
from optserve_server.settings import Settings

SMALL = {
    "tasks": [{"family": "quadratic", "parameters": {"dimension": 2}}],
    "steps": 3,
    "seeds": 2,
    "baselines": ["sgd"],
}


@dataclass(frozen=True)
class Served:
    url: str
    http: httpx.Client
    database: Database

    def launch(self, **changes: Any) -> str:
        reply = self.http.post("/evaluations", json={"optimizers": ["rnnprop"], **SMALL, **changes})
        assert reply.status_code == 202, reply.text
        return reply.json()["id"]

    def work(self, cells: int | None = None) -> None:
        """What a worker does: claims what was asked for first, and finishes so many of its cells, or all."""
        with self.database.session(write=True) as db_session:
            claimed = leases.claim(db_session, Evaluation, worker="w", device="cpu")
            lease, plan = leases.lease_of(claimed), parse(claimed.plan)
            entrants = [Entrant.read(one, optimizers.resolve(db_session, one).weights) for one in plan.optimizers]
            held, running, found = leases.hold(db_session, lease), evaluate(plan, entrants), None
            while cells is None or held.done < cells:
                try:
                    progress = next(running)
                except StopIteration as end:
                    found = end.value
                    break
                if progress.curves is not None:
                    evaluations.add_curves(db_session, held, progress.curves, progress.fingerprint)
            if found is not None:
                evaluations.succeed(db_session, held, found.ranking)


@pytest.fixture(scope="module")
def served(serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("evaluations"))
    with serving(settings) as url, httpx.Client(base_url=f"{url}/v1") as http:
        database = Database(settings.database)
        yield Served(url, http, database)
        database.close()


@pytest.fixture(autouse=True)
def empty_queue(served: Served) -> Iterator[None]:
    yield
    with served.database.session(write=True) as db_session:
        for status in (leases.QUEUED, leases.RUNNING):
            for left in evaluations.list_evaluations(db_session, limit=100, status=status):
                leases.finish(db_session, left, leases.CANCELLED)


def test_an_evaluation_is_queued_with_everything_it_will_be(served: Served) -> None:
    reply = served.http.post("/evaluations", json={"optimizers": ["lstm@latest", "rnnprop"]})
    assert reply.status_code == 202
    queued = reply.json()
    assert reply.headers["Location"] == f"/v1/evaluations/{queued['id']}"
    assert (queued["status"], queued["done"], queued["cells"]) == ("queued", 0, 12)
    assert queued["optimizers"] == ["lstm@1", "rnnprop@1"]
    assert queued["baselines"] == ["sgd", "nesterov", "rmsprop", "adam"]
    assert [task["label"] for task in queued["tasks"]] == ["quadratic", "digits-mlp"]
    assert (queued["suite"], queued["steps"], queued["horizons"]) == (None, 100, [100])
    assert served.http.get(reply.headers["Location"].removeprefix("/v1")).json() == {
        **queued,
        "curves": [],
        "comparisons": [],
    }


def test_a_finished_one_has_every_curve_the_best_learning_rates_and_the_ranking(served: Served) -> None:
    with optserve.Client(served.url) as client:
        evaluation = client.evaluations.launch(["rnnprop"], **SMALL)
        served.work(cells=1)
        assert evaluation.refresh().status == "running"
        (curves,) = evaluation.result().curves
        assert (curves.optimizer, curves.learning_rate, curves.steps) == ("rnnprop@1", None, [0, 1, 2, 3])

        evaluation = client.evaluations.launch(["rnnprop"], **SMALL)
        served.work()
        found = evaluation.wait()
        assert (found.status, found.done) == ("succeeded", 2)
        assert [line.optimizer for line in found.ranking] in (["rnnprop@1", "sgd"], ["sgd", "rnnprop@1"])
        tuned = found.curves[1]
        assert tuned.learning_rate in [tried.learning_rate for tried in tuned.learning_rates]
        assert len(tuned.learning_rates) >= 7
        assert [len(seed) for seed in tuned.losses] == [4, 4]
        assert found.curves[0] == curves  # the same plan, the same curves
        assert client.evaluations.get(evaluation.id).info.ranking == found.ranking


def test_a_suite_is_asked_for_by_its_name_and_several_horizons_are_compared(served: Served) -> None:
    with optserve.Client(served.url) as client:
        info = client.evaluations.launch(["rnnprop"], suite="standard", seeds=2).info
        assert (info.suite, info.horizons, info.steps, info.seeds) == ("standard", [100, 500, 2000], 2000, 2)
        assert (info.cells, len(info.tasks)) == (len(info.tasks) * (6 + len(info.untuned)), 81)
        assert "schedule-free-adamw" in info.baselines
        served.http.post(f"/evaluations/{info.id}/cancel")

        small = {**SMALL, "steps": None, "horizons": [2, 3], "baselines": ["sgd", "adam-cosine"], "untuned": ["soap"]}
        evaluation = client.evaluations.launch(["rnnprop"], **small)
        served.work(cells=3)
        assert evaluation.result().comparisons == []
        evaluation = client.evaluations.launch(["rnnprop"], **small, cache=False)
        served.work()
        found = evaluation.wait()
        assert [(task.label, task.steps) for task in found.tasks] == [
            ("quadratic:dimension=2", 2),
            ("quadratic:dimension=2", 3),
        ]
        assert [(one.task, len(one.median)) for one in found.curves] == [(0, 3)] * 4 + [(1, 4)] * 4
        whole = [one for one in found.comparisons if one.optimizer == "rnnprop@1" and one.steps is one.family is None]
        assert [(one.baseline, one.cells) for one in whole] == [("sgd", 2), ("adam-cosine", 2)]
        assert (found.untuned, found.curves[3].optimizer) == (["soap"], "soap (untuned)")


def test_the_list_goes_page_by_page_the_newest_first(served: Served) -> None:
    ids = [served.launch() for _ in range(3)]
    first = served.http.get("/evaluations", params={"limit": 2}).json()
    rest = served.http.get("/evaluations", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [one["id"] for one in [*first["items"], *rest["items"]]][:3] == ids[::-1]
    with optserve.Client(served.url) as client:
        assert [one.id for one in client.evaluations.list()[:3]] == ids[::-1]


def test_an_idempotency_key_queues_one_evaluation(served: Served, assert_problem) -> None:
    body, headers = {"optimizers": ["rnnprop"], **SMALL}, {"Idempotency-Key": "once"}
    one, two = (served.http.post("/evaluations", json=body, headers=headers) for _ in range(2))
    assert one.json() == two.json()
    assert one.status_code == two.status_code == 202
    other = served.http.post("/evaluations", json={**body, "seeds": 3}, headers=headers)
    assert_problem(other, "once", 409, "idempotency-conflict")


@pytest.mark.parametrize(
    ("changes", "slug", "status", "word", "path"),
    [
        ({"optimisers": []}, "evaluation-invalid", 422, "did you mean 'optimizers'", "optimisers"),
        (
            {"tasks": [{"family": "quadratics"}]},
            "evaluation-invalid",
            422,
            "did you mean 'quadratic'",
            "tasks.0.family",
        ),
        ({"baselines": ["adm"]}, "evaluation-invalid", 422, "did you mean 'adam'", "baselines"),
        ({"steps": "many"}, "evaluation-invalid", 422, "steps: ", "steps"),
        ({"optimizers": ["adam"]}, "evaluation-invalid", 422, "adam is designed by hand", "optimizers"),
        ({"optimizers": ["rnnprop", "rnnprop@1"]}, "evaluation-invalid", 422, "'rnnprop@1' is there twice", ""),
        ({"optimizers": ["rnnprob"]}, "optimizer-not-found", 404, "did you mean 'rnnprop'", None),
        ({"optimizers": ["rnnprop@9"]}, "version-not-found", 404, "only version 1", None),
    ],
)
def test_a_mistake_is_a_problem_that_names_it(
    served: Served, assert_problem, changes: dict[str, Any], slug: str, status: int, word: str, path: str | None
) -> None:
    before = served.http.get("/evaluations").json()
    reply = served.http.post("/evaluations", json={"optimizers": ["rnnprop"], **SMALL, **changes})
    assert_problem(reply, word, status, slug, {} if path is None else {"path": path})
    assert served.http.get("/evaluations").json() == before


def test_a_body_that_is_no_object_is_a_problem(served: Served, assert_problem) -> None:
    for content, slug, status in ((b"[]", "request-invalid", 422), (b"{", "malformed-body", 400)):
        reply = served.http.post("/evaluations", content=content, headers={"Content-Type": "application/json"})
        assert_problem(reply, "", status, slug)


def test_what_is_not_there_is_not_found(served: Served, assert_problem) -> None:
    for reply in (served.http.get("/evaluations/nothing"), served.http.post("/evaluations/nothing/cancel")):
        assert_problem(reply, "'nothing'", 404, "evaluation-not-found")
    assert_problem(served.http.get("/evaluations?cursor=x"), "is no cursor", 422, "request-invalid")


def test_cancelling_ends_what_waits_and_not_what_is_over(served: Served) -> None:
    with optserve.Client(served.url) as client:
        evaluation = client.evaluations.launch(["rnnprop"], **SMALL)
        assert evaluation.cancel().status == "cancelled"
        assert evaluation.wait().ranking == []
        done = client.evaluations.launch(["rnnprop"], **SMALL)
        served.work()
        with pytest.raises(errors.EvaluationConflict, match="succeeded"):
            done.cancel()


async def _awaited(url: str) -> str:
    async with optserve.AsyncClient(url) as client:
        evaluation = await client.evaluations.launch(["rnnprop"], **SMALL)
        await evaluation.cancel()
        await evaluation.wait()
        return (await client.evaluations.get(evaluation.id)).info.status


def test_the_awaited_client_does_the_same(served: Served) -> None:
    import asyncio

    assert asyncio.run(_awaited(served.url)) == "cancelled"


def test_a_failed_one_says_why(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    with optserve.Client(served.url) as client:
        evaluation = client.evaluations.launch(["rnnprop"], **SMALL)
        with served.database.session(write=True) as db_session:
            claimed = leases.claim(db_session, Evaluation, worker="w", device="cpu")
            leases.finish(db_session, claimed, leases.FAILED, "the family raised ValueError: no")
        with pytest.raises(errors.EvaluationFailed, match="failed: the family raised ValueError: no"):
            evaluation.wait(progress=True)
    assert f"evaluation {evaluation.id}" not in capfd.readouterr().out  # the bar is on stderr
