"""Every call of the OpenAPI document with generated input, alone and one after another, against a real server.

Whatever is sent, no reply is a 5xx but a documented one, and each has a documented status, media type, headers and
body. What is deleted stays deleted. `make fuzz` does the same with many more examples, other ones each time.
"""

import os
import subprocess
from pathlib import Path

import httpx
import pytest

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""Of each operation; 0: a few, always the same."""

SESSIONS = r"/v1/sessions(/\{session_id\}(/steps/\{step\}|/state|/restore|/checkpoints/\{name\})?)?$"
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory, optserve_command, run_server, postgresql):
    """A server with little memory for sessions and an API key, so that no call closes it: the server, and the key.

    It is on PostgreSQL, which takes fewer texts and numbers than SQLite.
    """
    database = ("--database-url", postgresql())
    directory = tmp_path_factory.mktemp("fuzzed")
    command = [optserve_command, "keys", "create", "--scope", "admin", "--name", "fuzzer", *database]
    key = subprocess.run(command, cwd=directory, capture_output=True, check=True, text=True).stdout.strip()
    with run_server(directory, "--state-memory", "64MiB", *database) as server:
        yield server, key


@pytest.mark.timeout(600 + 20 * EXAMPLES)
@pytest.mark.parametrize(
    ("phases", "paths", "examples"),
    [("coverage,fuzzing", "/", 3), ("stateful", "/", 10), ("stateful", SESSIONS, 10)],
)
def test_every_call_in_every_order(fuzzed, phases, paths, examples):
    server, key = fuzzed
    command = [
        CHECKOUT / ".venv/bin/st",
        f"--config-file={CHECKOUT / 'tests/fuzzing/schemathesis.toml'}",
        "run", f"{server.url}/openapi.json",
        "--no-color",
        f"--phases={phases}",
        f"--include-path-regex=^{paths}",
        f"--max-examples={EXAMPLES or examples}",
        *([] if EXAMPLES else ["--generation-deterministic", "--seed=1"]),
    ]  # fmt: skip
    found = subprocess.run(
        command, cwd=CHECKOUT, env={**os.environ, "FUZZED_KEY": key}, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout[-20_000:] + found.stderr[-2000:]
    assert httpx.get(f"{server.url}/readyz").status_code == 200
    errors = (server.data_dir.parent / "stderr").read_text()
    assert "Traceback" not in errors, errors[-20_000:]
