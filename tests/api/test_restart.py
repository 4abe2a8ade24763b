"""A server that is killed: every session goes on as if nothing had happened, and the last reply can be had again."""

import json
import resource
import signal
import subprocess
import time
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
import torch
from tests.api.conftest import Loop, open_loop
from tests.conftest import running_server

from optserve.wire import tensors
from optserve_server.optimizers import build, weights

OCTETS, SAFETENSORS, JSON = "application/octet-stream", "application/x-safetensors", "application/json"
STEPS = 66  # two more than a snapshot's interval

# What creates each session, and how its gradients travel.
KINDS = {
    "lstm": ({"optimizer": "random-lstm"}, OCTETS),
    "lstm as tensors": ({"optimizer": "random-lstm", "shapes": {"w": (7, 5), "b": (5,)}}, SAFETENSORS),
    "adam, whose betas move": ({"optimizer": "adam"}, JSON),
    "adamw, which follows the parameters": ({"optimizer": "adamw"}, OCTETS),
    "hierarchical": ({"optimizer": "random-hierarchical", "horizon": 50}, JSON),
    "rmsprop, some parameters skipped": ({"optimizer": "rmsprop"}, OCTETS),
    "float16": ({"optimizer": "adam", "dtype": "float16"}, OCTETS),
    "bfloat16": ({"optimizer": "random-lstm", "dtype": "bfloat16"}, OCTETS),
    "guarded": ({"optimizer": "random-lstm", "guard": {"max_update_rms": 0.0024, "patience": 3}}, OCTETS),
    "large": ({"optimizer": "adam", "shapes": {"w": (90_000,)}}, OCTETS),
}


def body(loop, media_type, step, skip):
    generator = np.random.default_rng(step)
    found = {}
    for one in loop.info["parameters"]:
        values = generator.normal(size=one["shape"]).astype(np.float32)
        if one["name"] not in skip:
            found[one["name"]] = values
    if media_type == JSON:
        return json.dumps({"gradients": {name: values.tolist() for name, values in found.items()}}).encode()
    if media_type == SAFETENSORS:
        return tensors.encode(found)
    flat = np.concatenate([values.reshape(-1) for values in found.values()])
    if loop.info["dtype"] == "bfloat16":
        return (flat.view(np.uint32) >> 16).astype("<u2").tobytes()
    return flat.astype("<f2" if loop.info["dtype"] == "float16" else "<f4").tobytes()


def take(loop, kind, step):
    """A step as this kind of session takes it, and what may come before it; the reply's bytes and what a guard did."""
    media_type, query = KINDS[kind][1], {}
    if "betas" in kind and step == 20:
        assert loop.http.patch(loop.path, json={"hyperparameters": {"betas": [0.5, 0.9]}}).status_code == 200
    if kind.startswith("adamw") and step in (0, 60):
        theta = np.arange(loop.coordinates, dtype="<f4").tobytes()
        headers = {"Content-Type": OCTETS}
        assert loop.http.put(f"{loop.path}/parameters", content=theta, headers=headers).status_code == 204
    if kind == "hierarchical":
        query["loss"] = 1 / (1 + step)
    if "skipped" in kind and step % 3 == 0:
        query["skip"] = "encoder.bias"
    reply = loop.post(step, body(loop, media_type, step, query.get("skip", "")), media_type, **query)
    assert reply.status_code == 200, reply.text
    assert "optserve-resumed" not in reply.headers
    assert reply.headers["optserve-durability"] == "synced"
    return reply.content, reply.headers.get("optserve-guard")


def import_random(http):
    for kind, sizes in (("lstm", {"hidden_size": 4}), ("hierarchical", {})):
        optimizer = build({"kind": kind, **sizes})
        data = weights.encode(optimizer, optimizer.initial_phi(torch.Generator().manual_seed(0)))
        headers = {"Content-Type": SAFETENSORS}
        assert http.post(f"/optimizers/random-{kind}/versions", content=data, headers=headers).status_code == 201


@contextmanager
def served(directory, *options):
    with running_server(directory, *options) as server, httpx.Client(base_url=f"{server.url}/v1", timeout=60) as http:
        yield server, http


def kill(server):
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()


class Outcome:
    """What a session said before its server was killed, and after; and one that nobody interrupted."""

    def __init__(self, loop, uninterrupted):
        self.loop, self.uninterrupted = loop, uninterrupted
        self.last, self.expected, self.digest = None, None, None


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Sessions of every kind, on a server that was killed after their `STEPS` and started again."""
    directory = tmp_path_factory.mktemp("killed")
    outcomes, extra = {}, {}
    with served(directory) as (server, http):
        import_random(http)
        for kind, (asked, _) in KINDS.items():
            outcomes[kind] = Outcome(open_loop(http, **asked), open_loop(http, **asked))
        for kind, outcome in outcomes.items():
            for step in range(STEPS):
                outcome.last = take(outcome.loop, kind, step)
                assert take(outcome.uninterrupted, kind, step) == outcome.last
            outcome.expected = [take(outcome.uninterrupted, kind, step) for step in range(STEPS, STEPS + 3)]
            outcome.digest = outcome.uninterrupted.get("/digest")
        kept, deleted = open_loop(http), open_loop(http, label="to be deleted")
        extra["created"] = create_under_key(http)
        kept.step(0, np.ones(kept.coordinates, np.float32))
        extra["digest"] = kept.get("/digest")
        assert http.put(f"{kept.path}/checkpoints/epoch 1").status_code == 200
        kept.step(1, np.ones(kept.coordinates, np.float32))
        deleted.close()
        extra |= {"kept": kept, "deleted": deleted}
        kill(server)
    with served(directory) as (server, http):
        for loop in (*(outcome.loop for outcome in outcomes.values()), kept, deleted):
            loop.http = http
        extra["pid"] = server.process.pid
        yield http, outcomes, extra


def create_under_key(http):
    asked = {"optimizer": "adam", "parameters": [{"name": "w", "shape": [3]}]}
    reply = http.post("/sessions", json=asked, headers={"Idempotency-Key": "once"})
    assert reply.status_code == 201
    return reply.json()["id"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_goes_on_as_if_nothing_had_happened(killed, kind):
    _, outcomes, _ = killed
    outcome = outcomes[kind]
    assert outcome.loop.get()["next_step"] == STEPS
    assert take(outcome.loop, kind, STEPS - 1) == outcome.last
    assert [take(outcome.loop, kind, step) for step in range(STEPS, STEPS + 3)] == outcome.expected
    assert outcome.loop.get("/digest") == outcome.digest


def test_a_guard_goes_on_too_and_its_events_are_kept(killed):
    http, outcomes, _ = killed
    events, expected = (
        [event for event in Loop(http, loop.info).get("/history")["guard_events"] if event["step"] < STEPS]
        for loop in (outcomes["guarded"].loop, outcomes["guarded"].uninterrupted)
    )
    assert events == expected
    assert {event["event"] for event in events} == {"fallback", "back"}


def test_checkpoints_deletions_and_idempotency_keys_outlive_the_server(killed):
    http, _, extra = killed
    kept = extra["kept"]
    assert http.post(f"{kept.path}/restore", json={"checkpoint": "epoch 1"}).json()["next_step"] == 1
    assert kept.get("/digest") == extra["digest"]
    assert http.get(extra["deleted"].path).json()["type"] == "urn:optserve:problem:session-not-found"
    assert create_under_key(http) == extra["created"]


def test_sessions_are_listed_in_the_order_of_their_creation(killed):
    http, outcomes, extra = killed
    listed = [one["id"] for one in http.get("/sessions").json()["items"]]
    expected = [one.info["id"] for outcome in outcomes.values() for one in (outcome.loop, outcome.uninterrupted)]
    assert listed == [*expected, extra["kept"].info["id"], extra["created"]]


def test_a_server_that_is_told_to_stop_leaves_snapshots_and_a_second_one_is_refused(tmp_path, optserve_command):
    with served(tmp_path, "--durability", "relaxed", "--park-after", "0.1") as (server, http):
        parked, stepped = open_loop(http), open_loop(http)
        gradients = np.ones(parked.coordinates, np.float32)
        reply = parked.post(0, gradients.tobytes())
        assert reply.headers["optserve-durability"] == "relaxed"
        assert {part.split(";")[0] for part in reply.headers["server-timing"].split(", ")} == {
            "queue",
            "journal",
            "compute",
        }
        second = subprocess.run(
            [optserve_command, "serve", "--port", "0", "--data-dir", str(tmp_path / "data")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (second.returncode, len(second.stderr.strip().splitlines())) == (1, 1)
        assert "another server" in second.stderr
        assert "--data-dir" in second.stderr
        deadline = time.monotonic() + 10
        while "00000002.snapshot" not in files_of(server, parked) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert parked.post(0, gradients.tobytes()).content == reply.content
        stepped.step(0, gradients)
        digest = stepped.get("/digest")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=10) == 0
        assert "00000002.snapshot" in files_of(server, stepped)
    with served(tmp_path) as (_, http):
        assert Loop(http, stepped.info).get("/digest") == digest


def test_a_full_disk_is_507_and_the_session_goes_on_when_there_is_room(killed, assert_problem):
    http, outcomes, extra = killed
    loop, body = Loop(http, outcomes["large"].uninterrupted.info), bytes(4 * 90_000)
    step = loop.get()["next_step"]
    everything = resource.prlimit(extra["pid"], resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    try:
        for _ in range(2):
            assert_problem(loop.post(step, body), "--data-dir", 507, "storage-full")
        assert loop.get()["next_step"] == step
    finally:
        resource.prlimit(extra["pid"], resource.RLIMIT_FSIZE, everything)
    assert loop.post(step, body).status_code == 200


def files_of(server, loop):
    return [path.name for path in (server.data_dir / "sessions" / loop.info["id"]).iterdir()]
