"""A store without a server, on files of its own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from optserve_server.optimizers import build
from optserve_server.sessions.description import VersionReference
from optserve_server.sessions.layout import lay_out
from optserve_server.sessions.pages import StateMemory
from optserve_server.sessions.plan import Plan, ServedVersion
from optserve_server.sessions.session import Session
from optserve_server.sessions.steps import StepGradients
from optserve_server.sessions.storage.directory import SessionDirectory
from optserve_server.sessions.store import SessionStore


def version(name: str, digit: str, **architecture: Any) -> ServedVersion:
    optimizer = build(architecture)
    initial = optimizer.initial_phi(torch.Generator().manual_seed(1))
    return ServedVersion(name, 1, digit * 64, optimizer, {key: weight + 0.1 for key, weight in initial.items()})


VERSIONS = {
    "adam": version("adam", "a", kind="adam"),
    "sgd": version("sgd", "b", kind="sgd"),
    "lstm": version("lstm", "c", kind="lstm", hidden_size=3),
    "hierarchical": version("hierarchical", "d", kind="hierarchical"),
    "small_fc": version("small_fc", "e", kind="small_fc"),
}


async def load(reference: VersionReference) -> ServedVersion:
    return VERSIONS[reference.name]


@asynccontextmanager
async def opened(path: Path, memory: int = 1 << 30, **options: Any) -> AsyncIterator[SessionStore]:
    """A store of what is in that directory."""
    store = SessionStore(StateMemory(memory), SessionDirectory(path), load, **options)
    store.start()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    """Runs a coroutine function with a store of its own."""

    def run(test: Callable[[SessionStore], Awaitable[None]], **options: Any) -> None:
        async def with_store() -> None:
            async with opened(tmp_path / "sessions", **options) as store:
                await test(store)

        asyncio.run(with_store())

    return run


async def new_session(
    store: SessionStore, name: str = "adam", parameters: Any = (("w", (10,)),), **plan: Any
) -> Session:
    return await store.create(VERSIONS[name], lay_out(parameters, 10**9), Plan(**plan))


def gradients(session: Session, value: float = 1.0, loss: float | None = None) -> StepGradients:
    sent = StepGradients(session.layout.complete, session.dtype, loss)
    sent.bits[:] = value
    return sent
