"""Every test of the registry runs on an SQLite file and on a real PostgreSQL."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from optserve_server.optimizers import build, weights
from optserve_server.registry import weight_files
from optserve_server.registry.database import Database
from optserve_server.registry.weight_files import WeightsFile


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
