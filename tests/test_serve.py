"""`optserve serve` and `optserve db`, as they are typed."""

import os
import signal
import sqlite3
import stat
import subprocess
import time

import httpx
import pytest


@pytest.fixture
def run(optserve_command, tmp_path):
    """Runs the command line in a directory of its own."""

    def run(*arguments, **environment):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPTSERVE_")}
        return subprocess.run(
            [optserve_command, *arguments],
            cwd=tmp_path,
            env={**inherited, "NO_COLOR": "1", "COLUMNS": "200", **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_a_server_says_where_it_is_and_stops_at_a_signal(start_server):
    server = start_server()
    ready = httpx.get(f"{server.url}/readyz").json()
    assert ready["status"] == "ready"
    assert "revision" in ready["checks"]["database"]
    assert httpx.get(f"{server.url}/healthz").json()["status"] == "ok"
    assert httpx.get(f"{server.url}/docs").status_code == 200
    assert {stat.S_IMODE(place.stat().st_mode) for place in (server.data_dir, server.data_dir / "sessions")} == {0o700}
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=20) == 0
    log = (server.data_dir.parent / "stderr").read_text()
    assert log.index('"event": "draining"') < log.index('"event": "stopped"')
    for told in (
        f"{server.url}/docs",
        "default optimizer  hierarchical",
        "kernel             numba for lstm, rnnprop, hierarchical; torch for all others",
        str(server.data_dir),
    ):
        assert told in server.banner


def test_a_default_optimizer_that_is_none_and_a_directory_that_is_none_are_named(run, tmp_path):
    result = run("serve", "--port", "0", "--workers", "0", "--default-optimizer", "hierarchial")
    assert (result.returncode, result.stdout) == (2, "")
    assert "--default-optimizer" in result.stderr
    assert "did you mean 'hierarchical'" in result.stderr
    (tmp_path / "file").touch()
    result = run("serve", "--port", "0", "--data-dir", "file")
    assert result.returncode == 2
    assert "--data-dir: file cannot be the server's directory: it is a file" in result.stderr


def test_a_port_in_use_is_one_clear_line(server, run):
    result = run("serve", "--port", str(server.port))
    assert result.returncode == 1
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert f"127.0.0.1:{server.port}" in line
    assert "in use" in line
    assert "--port" in line


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_strangers_are_kept_out_while_there_are_no_keys(run, host):
    result = run("serve", "--host", host, "--port", "0")
    assert result.returncode == 2
    assert "--insecure" in result.stderr
    assert host in result.stderr


def test_strangers_are_let_in_where_that_is_asked_for(start_server):
    server = start_server("--host", "0.0.0.0", "--insecure")
    assert httpx.get(f"http://127.0.0.1:{server.port}/healthz").status_code == 200


def test_strangers_with_a_key_are_let_in_and_the_last_key_taken_away_lets_nobody_in(start_server, run):
    keys = ("--data-dir", "data")
    key = run("keys", "create", "--scope", "client", "--name", "ada", *keys).stdout.strip()
    server = start_server("--host", "0.0.0.0")
    tasks = f"http://127.0.0.1:{server.port}/v1/tasks"
    assert httpx.get(tasks).status_code == 401
    assert httpx.get(tasks, headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert "revoked" in run("keys", "revoke", "ada", *keys).stdout
    time.sleep(1.5)
    assert httpx.get(tasks).status_code == 401


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("prot = 1", ["'prot'", "did you mean 'port'"]),
        ("port = 70000", ["'port'", "65535"]),
        ("port =", ["optserve.toml", "Invalid value"]),
        ("state_memory = 'much'", ["'state_memory'"]),
    ],
)
def test_a_bad_setting_is_named(run, tmp_path, file, words):
    (tmp_path / "optserve.toml").write_text(file)
    result = run("serve")
    assert result.returncode == 2
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr


def test_a_misspelt_variable_of_the_environment_is_named_and_those_of_clients_are_not(run):
    for command in (["serve", "--host", "192.0.2.1"], ["worker"]):
        result = run(*command, OPTSERVE_MAX_BODY_BYTE="1MiB", OPTSERVE_URL="http://[::1]", OPTSERVE_API_KEY="k")
        assert result.returncode == 2
        assert "OPTSERVE_MAX_BODY_BYTE, which is no setting" in result.stderr
        assert "did you mean 'OPTSERVE_MAX_BODY_BYTES'" in result.stderr
    known = run("serve", "--host", "192.0.2.1", OPTSERVE_URL="http://[::1]", OPTSERVE_API_KEY="k", optserve_port="1")
    assert "--insecure" in known.stderr


def test_options_go_before_the_environment_and_that_before_the_file(run, tmp_path):
    (tmp_path / "optserve.toml").write_text("host = '192.0.2.1'\n")
    assert "192.0.2.1" in run("serve").stderr
    assert "192.0.2.2" in run("serve", OPTSERVE_HOST="192.0.2.2").stderr
    assert "192.0.2.3" in run("serve", "--host", "192.0.2.3", OPTSERVE_HOST="192.0.2.2").stderr


def test_a_unix_socket_is_its_owners_and_outlives_a_crash(optserve_command, tmp_path):
    path = tmp_path / "socket"
    for attempt in range(2):  # the second finds what the first left behind
        command = [optserve_command, "serve", "--uds", path, "--data-dir", tmp_path / "data", "--workers", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert f"unix://{path}" in process.stdout.readline()
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as http:
                assert http.get("http://optserve/readyz").status_code == 200
            if attempt == 1:
                late = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
                assert (late.returncode, len(late.stderr.splitlines())) == (1, 1)
                assert "in use" in late.stderr
            process.kill()
            process.communicate()


def test_the_database_is_migrated_and_its_revision_told(run, tmp_path):
    assert "no schema" in run("db", "current").stdout
    upgraded = run("db", "upgrade")
    assert "revision" in upgraded.stdout
    assert run("db", "current", "--json").stdout.startswith('{"revision": "0')
    with sqlite3.connect(tmp_path / "optserve-data" / "optserve.db") as database:
        assert database.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
    database.close()


def test_a_database_that_cannot_be_is_named(run):
    for command in (["db", "current"], ["serve", "--port", "0"]):
        result = run(*command, "--database-url", "mysql://here/there")
        assert result.returncode != 0
        assert "postgresql://" in result.stderr
        assert "Traceback" not in result.stderr
    unreachable = run("serve", "--port", "0", "--database-url", "postgresql://127.0.0.1:1/none")
    assert unreachable.returncode == 1
    [line] = unreachable.stderr.splitlines()
    assert "database" in line


def test_idle_servers_are_idle(start_server):
    """Nothing spins: a server that nobody asks takes next to no processor time."""
    server = start_server()
    ticks = os.sysconf("SC_CLK_TCK")

    def used():
        fields = (server.data_dir.parent / f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / ticks

    before = used()
    time.sleep(2)
    assert used() - before < 0.3
