"""Meta-training over HTTP, with a real server and real worker processes."""

import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

RUNS = "/meta-training-runs"
EVENTS = {"Accept": "text/event-stream"}
PATIENCE = 60


class Runs:
    """The runs of one server, as plain HTTP."""

    def __init__(self, http: httpx.Client, tiny_recipe: dict[str, Any]) -> None:
        self.http = http
        self.tiny = tiny_recipe

    def recipe(self, outer_steps: int = 6, **changes: Any) -> dict[str, Any]:
        return {**self.tiny, "meta_optimizer": {**self.tiny["meta_optimizer"], "outer_steps": outer_steps}, **changes}

    def launch(self, outer_steps: int = 6, **changes: Any) -> str:
        reply = self.http.post(RUNS, json=self.recipe(outer_steps, **changes))
        assert reply.status_code == 202, reply.text
        return str(reply.json()["id"])

    def get(self, run_id: str) -> dict[str, Any]:
        info: dict[str, Any] = self.http.get(f"{RUNS}/{run_id}").json()
        return info

    def post(self, run_id: str, action: str, **body: Any) -> httpx.Response:
        return self.http.post(f"{RUNS}/{run_id}/{action}", **({"json": body} if body else {}))

    def wait(self, run_id: str, condition: Callable[[dict[str, Any]], Any] | None = None) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while True:
            info = self.get(run_id)
            if condition(info) if condition else info["finished_at"]:
                return info
            assert time.monotonic() < deadline, info
            time.sleep(0.05)

    def curve(self, run_id: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.http.get(f"{RUNS}/{run_id}/metrics").json()["items"]
        return items

    def events(self, run_id: str, **headers: str) -> Iterator[dict[str, str]]:
        """The events of a run's stream, each as its fields."""
        with self.http.stream("GET", f"{RUNS}/{run_id}/metrics", headers={**EVENTS, **headers}) as reply:
            assert reply.status_code == 200
            assert reply.headers["content-type"].startswith("text/event-stream")
            event: dict[str, str] = {}
            for line in reply.iter_lines():
                if not line and event:
                    yield event
                    event = {}
                elif line and not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    event[name] = value


@pytest.fixture(scope="module")
def connect(tiny_recipe: dict[str, Any]) -> Iterator[Callable[..., Runs]]:
    opened: list[httpx.Client] = []

    def to(server: Any) -> Runs:
        opened.append(httpx.Client(base_url=f"{server.url}/v1", timeout=60))
        return Runs(opened[-1], tiny_recipe)

    yield to
    for http in opened:
        http.close()


@pytest.fixture(scope="module")
def runs(server_with_worker, connect) -> Runs:
    """Of a server with a worker."""
    return connect(server_with_worker)


@pytest.fixture(scope="module")
def waiting(server, connect) -> Runs:
    """Of a server without workers, where a run stays queued."""
    return connect(server)


# --- launching --------------------------------------------------------------------------------------------------------


def test_a_run_is_carried_out_and_its_versions_can_be_served(runs) -> None:
    reply = runs.http.post(RUNS, json=runs.recipe(name="served"))
    info = reply.json()
    assert (reply.status_code, reply.headers["location"]) == (202, f"/v1/meta-training-runs/{info['id']}")
    assert (info["status"], info["outer_steps"], info["attempt"], info["owner"]) == ("queued", 6, 1, "anonymous")
    assert info["recipe"]["meta_loss"]["kind"] == "final"  # defaults are written down too
    done = runs.wait(info["id"])
    assert (done["status"], done["outer_step"], done["versions"], done["error"]) == ("succeeded", 6, [1, 2], None)
    assert done["worker"]
    assert (done["device"], done["eta_seconds"]) == ("cpu", None)
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]
    curve = runs.curve(info["id"])
    assert [row["outer_step"] for row in curve] == [1, 2, 3, 4, 5, 6]
    assert [row["outer_step"] for row in curve if "meta_loss_held_out" in row] == [3, 6]
    assert (done["meta_loss"], done["meta_loss_held_out"]) == (curve[-1]["meta_loss"], curve[-1]["meta_loss_held_out"])
    version = runs.http.get("/optimizers/served/versions/2").json()
    assert (version["run"], version["parent"], version["recipe"]) == (info["id"], "served@1", info["recipe"])
    assert version["metrics"] == {name: curve[-1][name] for name in ("outer_step", "meta_loss", "meta_loss_held_out")}
    session = {"optimizer": "served@best", "parameters": [{"name": "w", "shape": [3]}]}
    created = runs.http.post("/sessions", json=session)
    assert created.status_code == 201
    assert created.json()["optimizer"]["sha256"] in {
        one["sha256"] for one in runs.http.get("/optimizers/served").json()["versions"]
    }


def test_start_from_is_resolved_when_the_run_is_launched(runs) -> None:
    first = runs.launch(3, name="started")
    runs.wait(first)
    second = runs.launch(3, name="started", start_from="started")
    assert runs.get(second)["recipe"]["start_from"] == "started@1"
    runs.wait(second)
    assert runs.http.get("/optimizers/started/versions/2").json()["parent"] == "started@1"


BAD = [
    ({"meta_optimizer": {"learning_rat": 1}}, "meta_optimizer.learning_rat", "did you mean 'learning_rate'"),
    ({"meta_optimizer": {"learning_rate": -1}}, "meta_optimizer.learning_rate", "greater than 0"),
    ({"meta_optimizer": {"outer_steps": 2**31}}, "meta_optimizer.outer_steps", "less than or equal to"),
    (
        {
            "meta_optimizer": {"tasks_per_outer_step": 10**6},
            "tasks": [{"family": "quadratic", "parameters": {"dimension": 1000}}],
        },
        "meta_optimizer.tasks_per_outer_step",
        "GiB of memory, and a worker has",
    ),
    ({"tasks": [{"family": "quadratics"}]}, "tasks.0.family", "did you mean 'quadratic'"),
    ({"tasks": []}, "tasks", "at least 1 item"),
    ({"unroll": {"steps": 10, "truncation": 3}}, "unroll.truncation", "3"),
    ({"architecture": {"kind": "adam"}}, "architecture", "no weights to meta-train"),
    ({"name": "rnnprop"}, "architecture.kind", "'rnnprop' is of the kind 'rnnprop'"),
    ({"name": "adam"}, "name", "designed by hand"),
    ({"start_from": "lstn"}, "start_from", "did you mean 'lstm'"),
    ({"start_from": "lstm@99"}, "start_from", "no version 99"),
    ({"start_from": "rnnprop@1"}, "start_from", "rnnprop@1 is of the architecture"),
    ({"description": "\0"}, "", "zero character"),
    ({"description": "\ud800"}, "", "cannot be kept"),
]


@pytest.mark.parametrize(("changes", "path", "word"), BAD, ids=[path or "text" for _, path, _ in BAD])
def test_a_recipe_that_cannot_be_run_names_its_key(waiting, assert_problem, changes, path, word) -> None:
    before = waiting.http.get(RUNS).json()["items"]
    body = json.dumps({**waiting.tiny, **changes})
    reply = waiting.http.post(RUNS, content=body, headers={"Content-Type": "application/json"})
    assert_problem(reply, word, 422, "recipe-invalid", {"path": path})
    pointer = "#/" + path.replace(".", "/") if path else "#"
    assert reply.json()["errors"][0]["pointer"] == pointer
    assert waiting.http.get(RUNS).json()["items"] == before


def test_what_is_no_recipe_at_all_is_refused(waiting, assert_problem) -> None:
    json_body = {"Content-Type": "application/json"}
    assert_problem(waiting.http.post(RUNS, content="{", headers=json_body), "not JSON", 400, "malformed-body")
    assert_problem(waiting.http.post(RUNS, content="[]", headers=json_body), "dictionary", 422, "request-invalid")
    assert_problem(waiting.http.post(RUNS, content="name = 1"), "media type", 415, "unsupported-media-type")


def test_an_idempotency_key_launches_one_run(waiting, assert_problem) -> None:
    def launch(**changes: Any) -> httpx.Response:
        return waiting.http.post(RUNS, json=waiting.recipe(**changes), headers={"Idempotency-Key": "one-run"})

    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: launch(name="once"), range(4)))
    assert {(reply.status_code, reply.json()["id"]) for reply in replies} == {(202, replies[0].json()["id"])}
    assert_problem(launch(name="twice"), "another body", 409, "idempotency-conflict")
    waiting.post(replies[0].json()["id"], "cancel")


def test_the_list_goes_page_by_page_the_newest_first(waiting, assert_problem) -> None:
    ids = [waiting.launch() for _ in range(3)]
    first = waiting.http.get(RUNS, params={"limit": 2}).json()
    second = waiting.http.get(RUNS, params={"limit": 1000, "cursor": first["next_cursor"]}).json()
    assert [one["id"] for one in first["items"] + second["items"]][:3] == ids[::-1]
    waiting.post(ids[1], "cancel")
    queued = waiting.http.get(RUNS, params={"status": "queued"}).json()["items"]
    assert [one["id"] for one in queued if one["id"] in ids] == [ids[2], ids[0]]
    assert_problem(waiting.http.get(RUNS, params={"cursor": "x"}), "next_cursor", 422, "request-invalid")
    assert_problem(waiting.http.get(RUNS, params={"status": "done"}), "queued", 422, "request-invalid")
    for run_id in ids:
        waiting.post(run_id, "cancel")


# --- watching ---------------------------------------------------------------------------------------------------------


def test_a_stream_tells_every_outer_step_once_however_often_it_is_cut_off(runs) -> None:
    run_id = runs.launch(60, checkpoints={"every": 60})
    seen = list(islice(runs.events(run_id), 20))
    seen += islice(runs.events(run_id, **{"Last-Event-ID": seen[-1]["id"]}), 20)
    seen += runs.events(run_id, **{"Last-Event-ID": seen[-1]["id"]})
    *rows, end = seen
    assert [int(row["id"]) for row in rows] == list(range(1, 61))
    assert [json.loads(row["data"]) for row in rows] == runs.curve(run_id)
    assert end["event"] == "end"
    assert json.loads(end["data"]) == runs.get(run_id)
    assert [event["event"] for event in runs.events(run_id, **{"Last-Event-ID": "60"})] == ["end"]


def test_what_cannot_be_watched_says_why(waiting, assert_problem) -> None:
    for headers in ({}, EVENTS):
        reply = waiting.http.get(f"{RUNS}/nothing/metrics", headers=headers)
        assert_problem(reply, "no meta-training run 'nothing'", 404, "run-not-found")
    run_id = waiting.launch()
    assert waiting.curve(run_id) == []
    for number in ("x", "-1", "9" * 30):
        reply = waiting.http.get(f"{RUNS}/{run_id}/metrics", headers={**EVENTS, "Last-Event-ID": number})
        assert reply.json()["type"] == "urn:optserve:problem:request-invalid"
    waiting.post(run_id, "cancel")


# --- cancelling and resuming ------------------------------------------------------------------------------------------


def test_a_run_is_cancelled_and_resumed_and_ends_as_if_it_had_not_been(runs) -> None:
    run_id = runs.launch(1000, name="resumed", checkpoints={"every": 1000})
    runs.wait(run_id, lambda info: info["outer_step"])
    reply = runs.post(run_id, "cancel")
    assert (reply.status_code, reply.json()["cancel_requested"]) == (202, True)
    cancelled = runs.wait(run_id)
    assert (cancelled["status"], cancelled["versions"]) == ("cancelled", [1])
    assert cancelled["outer_step"] < 1000
    assert runs.post(run_id, "cancel").json() == cancelled
    assert runs.post(run_id, "resume").json()["attempt"] == 2
    assert runs.wait(run_id)["status"] == "succeeded"
    whole = runs.launch(1000, name="resumed", checkpoints={"every": 1000})
    runs.wait(whole)
    assert runs.curve(run_id) == runs.curve(whole)
    versions = [runs.http.get(f"/optimizers/resumed/versions/{number}").json() for number in (2, 3)]
    assert versions[0]["sha256"] == versions[1]["sha256"]


def test_what_cannot_be_cancelled_or_resumed_says_why(runs, assert_problem) -> None:
    run_id = runs.launch(3)
    done = runs.wait(run_id)
    assert_problem(runs.post(run_id, "cancel"), "succeeded already", 409, "run-conflict", {"run_status": "succeeded"})
    assert_problem(runs.post(run_id, "resume"), "with more `outer_steps`", 409, "run-conflict")
    fewer = runs.post(run_id, "resume", outer_steps=2)
    assert_problem(fewer, "as many, or more", 422, "request-invalid")
    assert fewer.json()["errors"][0]["pointer"] == "#/outer_steps"
    for body in ({"outer_steps": 3.5}, {"outer_steps": "9"}, {"outer_step": 9}):
        assert runs.post(run_id, "resume", **body).status_code == 422
    for action in ("cancel", "resume"):
        assert_problem(runs.post("nothing", action), "no meta-training run", 404, "run-not-found")
    too_many = runs.post(run_id, "resume", outer_steps=2**31)
    assert_problem(too_many, "less than", 422, "recipe-invalid", {"path": "meta_optimizer.outer_steps"})
    assert runs.get(run_id) == done
    assert runs.post(run_id, "resume", outer_steps=6).json()["outer_steps"] == 6
    assert runs.wait(run_id)["outer_step"] == 6


def test_a_server_restart_loses_no_run(start_server, connect) -> None:
    first = start_server("--workers", "1")
    before = connect(first)
    run_id = before.launch(200, checkpoints={"every": 200})
    behind = before.launch(3)
    made = before.wait(run_id, lambda info: info["outer_step"])["outer_step"]
    with before.http.stream("GET", f"{RUNS}/{run_id}/metrics", headers=EVENTS) as stream:  # which holds nothing up
        assert stream.status_code == 200
        first.process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        assert list(stream.iter_lines())
        assert time.monotonic() - asked < 8
    assert first.process.wait(timeout=30) == 0
    assert "Fatal" not in (first.data_dir.parent / "stderr").read_text()
    with sqlite3.connect(first.data_dir / "optserve.db") as database:
        left = database.execute("SELECT status, outer_step FROM meta_training_runs ORDER BY number").fetchall()
    database.close()
    assert left == [("queued", left[0][1]), ("queued", 0)]  # the worker has given it back
    assert left[0][1] >= made
    after = connect(start_server("--workers", "1"))
    done = after.wait(run_id)
    assert (done["status"], done["attempt"]) == ("succeeded", 2)
    assert [row["outer_step"] for row in after.curve(run_id)] == list(range(1, 201))
    assert after.wait(behind)["status"] == "succeeded"


def test_all_of_it_on_postgresql(start_server, connect, postgresql) -> None:
    url = postgresql()
    server = start_server("--workers", "2", "--database-url", url)
    assert "workers            2" in server.banner
    runs = connect(server)
    ids = [runs.launch(100, name=f"many-{number % 2}", checkpoints={"every": 50}) for number in range(3)]
    killed = int(runs.wait(ids[0], lambda info: info["outer_step"])["worker"].rpartition("-")[2])
    os.kill(killed, signal.SIGKILL)
    with psycopg.connect(url) as database:  # as if its lease had run out
        hers = f"worker LIKE '%-{killed}' AND status = 'running'"
        database.execute(f"UPDATE meta_training_runs SET lease_expires_at = now() WHERE {hers}")
    seen = list(runs.events(ids[0]))
    done = [runs.wait(run_id) for run_id in ids]
    assert [(info["status"], info["attempt"]) for info in done] == [
        ("succeeded", 2),
        ("succeeded", 1),
        ("succeeded", 1),
    ]
    assert [int(event["id"]) for event in seen] == [*range(1, 101), 100]
    curves = [runs.curve(run_id) for run_id in ids]
    assert all(curve == curves[0] for curve in curves)
    assert sorted(number for info in done for number in info["versions"]) == [1, 1, 2, 2, 3, 4]
    assert runs.post(ids[0], "resume", outer_steps=110).status_code == 202
    assert runs.wait(ids[0])["outer_step"] == 110
    server.process.kill()  # its workers notice
    workers = {int(info["worker"].rpartition("-")[2]) for info in done}
    deadline = time.monotonic() + PATIENCE
    while any(is_alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"
