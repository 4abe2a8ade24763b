"""The order of steps: each is taken exactly once, and no session depends on another."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from safetensors.numpy import save

LARGE = {"w": (300, 100)}  # many pages, taken beside the event loop
HEAVY = {"w": (1000, 1000)}


@pytest.fixture(params=["small", "large"])
def shapes(request):
    return {"small": {"w": (7, 5), "b": ()}, "large": LARGE}[request.param]


@pytest.mark.parametrize("optimizer", ["adam", "learned"])
def test_the_last_step_sent_again_gets_the_same_bytes(new_loop, gradients, learned, optimizer, shapes):
    loop = new_loop(learned if optimizer == "learned" else optimizer, shapes)
    first, second = gradients(loop.coordinates), gradients(loop.coordinates)
    loop.step(0, first)
    given = loop.step(1, second, loss=0.5)
    digest = loop.get("/digest")
    for _ in range(3):
        assert loop.step(1, second, loss=0.5) == given
    assert loop.get("/digest") == digest
    assert loop.get()["next_step"] == 2


def test_the_last_step_sent_again_in_another_form_gets_the_same_numbers(new_loop, gradients):
    loop = new_loop("adam", {"w": (30,)})
    flat = gradients(30)
    given = np.frombuffer(loop.step(0, flat), "<f4")
    tensors = loop.post(0, save({"w": flat}), "application/x-safetensors")
    assert tensors.status_code == 200
    assert tensors.content[-120:] == given.tobytes()
    assert loop.http.post(f"{loop.path}/steps/0", json={"gradients": {"w": flat.tolist()}}).json() == {
        "step": 0,
        "updates": {"w": given.tolist()},
    }


@pytest.mark.parametrize("change", ["gradients", "loss", "skip", "the step before"])
def test_the_last_step_sent_again_otherwise_is_a_conflict(new_loop, gradients, assert_problem, change, shapes):
    loop = new_loop("adam", shapes)
    first, second = gradients(loop.coordinates), gradients(loop.coordinates)
    loop.step(0, first)
    loop.step(1, second, loss=0.5)
    digest = loop.get("/digest")
    other = second.copy()
    other[-1] = np.nextafter(other[-1], np.float32(np.inf))
    reply = {
        "gradients": lambda: loop.post(1, other.tobytes(), loss=0.5),
        "loss": lambda: loop.post(1, second.tobytes(), loss=0.25),
        "skip": lambda: loop.post(1, b"", loss=0.5, skip=list(shapes)),
        "the step before": lambda: loop.post(0, first.tobytes()),
    }[change]()
    assert_problem(reply, "send step 2", 409, "step-conflict", {"next_step": 2})
    assert loop.get("/digest") == digest


@pytest.mark.parametrize("optimizer", ["adam", "learned"])
def test_twenty_equal_steps_at_once_are_one(server, new_loop, gradients, learned, optimizer, shapes):
    name = learned if optimizer == "learned" else optimizer
    loop, alone = new_loop(name, shapes), new_loop(name, shapes)
    url = f"{server.url}/v1{loop.path}/steps"
    headers = {"Content-Type": "application/octet-stream"}
    with ThreadPoolExecutor(20) as threads, httpx.Client(limits=httpx.Limits(max_connections=20)) as client:
        for step in range(3):
            body = gradients(loop.coordinates).tobytes()

            def send(_, step=step, body=body):
                return client.post(f"{url}/{step}", content=body, headers=headers)

            replies = list(threads.map(send, range(20)))
            assert {reply.status_code for reply in replies} == {200}
            assert {reply.content for reply in replies} == {alone.post(step, body).content}
    assert loop.get("/digest") == alone.get("/digest")


def test_different_steps_at_once_are_one_and_conflicts(server, new_loop, gradients):
    loop = new_loop("adam", LARGE)
    bodies = [gradients(loop.coordinates).tobytes() for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda body: loop.post(0, body), bodies))
    assert sorted(reply.status_code for reply in replies) == [200] + [409] * 7
    winner = next(body for body, reply in zip(bodies, replies, strict=True) if reply.status_code == 200)
    alone = new_loop("adam", LARGE)
    alone.post(0, winner)
    assert loop.get("/digest") == alone.get("/digest")


def test_a_client_that_hangs_up_in_the_middle_of_a_step_gets_its_reply_later(server, new_loop, gradients):
    loop, alone = new_loop("adam", HEAVY), new_loop("adam", HEAVY)
    body = gradients(loop.coordinates).tobytes()
    head = (
        f"POST /v1{loop.path}/steps/0 HTTP/1.1\r\nHost: test\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + body)
    deadline = time.monotonic() + 30
    while loop.get()["next_step"] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    expected = alone.post(0, body).content
    assert loop.post(0, body).content == expected
    assert loop.get("/digest") == alone.get("/digest")


@pytest.mark.parametrize("optimizer", ["adam", "learned"])
def test_a_session_goes_its_way_whatever_the_others_do(new_loop, gradients, learned, optimizer):
    """Neither the neighbours nor the page numbers, nor how many cores share the step, change a single bit."""
    name = learned if optimizer == "learned" else optimizer
    sizes = [1, 255, 256, 257, 3000, 70_000]
    sent = {size: [gradients(size).tobytes() for _ in range(4)] for size in sizes}
    alone = {}
    for size in sizes:
        loop = new_loop(name, {"w": (size,)})
        alone[size] = [loop.post(step, body).content for step, body in enumerate(sent[size])]
        loop.close()
    crowd = {size: new_loop(name, {"w": (size,)}) for size in reversed(sizes)}
    with ThreadPoolExecutor(len(sizes)) as threads:
        for step in range(4):
            replies = threads.map(lambda size, step=step: crowd[size].post(step, sent[size][step]).content, sizes)
            assert list(replies) == [alone[size][step] for size in sizes]


def test_a_coordinate_goes_its_way_wherever_it_lies(new_loop, gradients, learned):
    """Also where a step is shared out over several cores."""
    whole, parts = new_loop(learned, {"w": (40_000,)}), [new_loop(learned, {"w": (5_000,)}) for _ in range(8)]
    for step in range(3):
        flat = gradients(40_000)
        pieces = [part.step(step, piece) for part, piece in zip(parts, np.split(flat, 8), strict=True)]
        assert whole.step(step, flat) == b"".join(pieces)


def test_a_large_step_does_not_hold_up_the_event_loop(server, new_loop, gradients, learned):
    """While a step of 10⁶ coordinates is computed, small requests are answered as usual."""
    loop = new_loop(learned, HEAVY)
    body = gradients(loop.coordinates).tobytes()
    with ThreadPoolExecutor(1) as threads, httpx.Client() as client:
        client.get(f"{server.url}/healthz")
        step = threads.submit(loop.post, 0, body)
        waits = []
        while not step.done():
            start = time.perf_counter()
            client.get(f"{server.url}/healthz")
            waits.append(time.perf_counter() - start)
        timing = step.result().headers["server-timing"]
    computed = float(timing.partition("compute;dur=")[2]) / 1000
    # Computed on the event loop, the step would hold one of the requests up for all of its time.
    assert max(waits) < 0.8 * computed, (timing, len(waits))
