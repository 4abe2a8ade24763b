"""What every request gets: an id, a line in the log, a place in the count."""

import asyncio
import json
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from optserve_server.app import create_app
from optserve_server.settings import Settings

Lines = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
def lines(server) -> Lines:
    """The lines of the shared server's log with this request id."""

    def read(request_id: str) -> list[dict[str, Any]]:
        httpx.get(f"{server.url}/healthz")  # a line is written behind its reply, but before the next one
        text = (server.data_dir.parent / "stderr").read_text()
        return [found for line in text.splitlines() if (found := json.loads(line)).get("request_id") == request_id]

    return read


def new_id() -> str:
    return secrets.token_hex(8)


def ask(http, path: str, *, method: str = "GET", **headers: str) -> httpx.Response:
    return http.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})


def test_a_request_keeps_the_id_it_came_with(http):
    assert ask(http, "/tasks", x_request_id="from-the-proxy/7").headers["x-request-id"] == "from-the-proxy/7"
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"  # pragma: allowlist secret
    assert ask(http, "/tasks", traceparent=f"00-{trace}-00f067aa0ba902b7-01").headers["x-request-id"] == trace


@pytest.mark.parametrize("insane", ["", "a b", "x" * 129, '"};DROP', "line\tfeed"])
def test_an_id_that_is_none_is_replaced(http, insane):
    found = {ask(http, "/tasks", x_request_id=insane).headers["x-request-id"] for _ in range(2)}
    assert len(found) == 2
    assert insane not in found


def test_a_request_is_a_line(http, lines):
    request_id = new_id()
    ask(http, "/tasks?limit=3", x_request_id=request_id)
    [line] = lines(request_id)
    expected = {"event": "request", "level": "info", "method": "GET", "path": "/v1/tasks", "status": 200}
    assert {name: line[name] for name in expected} == expected
    assert 0 < line["seconds"] < 10
    assert line["caller"] == "anonymous"


def test_what_a_session_is_asked_has_its_id(new_loop, lines):
    loop, request_id = new_loop("adam", {"w": (4,)}), new_id()
    ask(loop.http, loop.path, x_request_id=request_id)
    assert [line["session_id"] for line in lines(request_id)] == [loop.info["id"]]


def test_steps_and_probes_are_lines_only_where_they_go_wrong(new_loop, lines, server, gradients):
    loop, request_id = new_loop("adam", {"w": (4,)}), new_id()
    headers = {"X-Request-Id": request_id, "Content-Type": "application/octet-stream"}
    body = gradients(4).tobytes()
    assert loop.http.post(f"{loop.path}/steps/0", content=body, headers=headers).status_code == 200
    for probe in ("healthz", "readyz", "metrics"):
        httpx.get(f"{server.url}/{probe}", headers=headers)
    assert lines(request_id) == []
    loop.http.post(f"{loop.path}/steps/5", content=body, headers=headers)
    [line] = lines(request_id)
    assert (line["status"], line["session_id"]) == (409, loop.info["id"])


def test_a_fault_of_the_server_is_found_in_the_log_by_what_the_reply_tells(tmp_path):
    app = create_app(Settings(data_dir=tmp_path))  # it has not been started, so that nothing works

    async def ask_it() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://optserve") as client:
            return await client.get("/v1/tasks", headers={"X-Request-Id": "7"})

    with capture_logs() as logged:
        reply = asyncio.run(ask_it())
    app.state.database.close()
    problem = reply.json()
    assert (reply.status_code, problem["type"]) == (500, "urn:optserve:problem:internal-error")
    assert (problem["request_id"], reply.headers["x-request-id"]) == ("7", "7")
    [fault, line] = logged
    assert (fault["error_id"], fault["log_level"]) == (problem["error_id"], "error")
    assert isinstance(fault["exc_info"], AttributeError)
    assert (line["status"], line["log_level"]) == (500, "warning")


def test_pipelined_requests_keep_their_ids_apart(server, new_loop):
    """Two requests sent at once over one connection: neither has anything of the other."""
    loop = new_loop("adam", {"w": (4,)})
    paths = (f"/v1{loop.path}", "/v1/nothing")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        for number, path in enumerate(paths):
            last = "Connection: close\r\n" if number else ""
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nX-Request-Id: n{number}\r\n{last}\r\n".encode())
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    assert received.index(b"x-request-id: n0") < received.index(b"x-request-id: n1")
    time.sleep(0.1)
    text = (server.data_dir.parent / "stderr").read_text()
    found = {line["request_id"]: line for line in map(json.loads, text.splitlines()) if "request_id" in line}
    assert found["n0"]["session_id"] == loop.info["id"]
    assert "session_id" not in found["n1"]
