"""Journals with a few records, and what is in them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optserve_server.sessions.storage.journal import NOTHING, Generation, Journal, reading
from optserve_server.sessions.storage.records import Body, Kind, Record

SESSION = "5e55"


def generation(number: int = 1, first_step: int = 0, parent: int | None = NOTHING, alignment: int = 1) -> Generation:
    return Generation(SESSION, number, first_step, parent, "kernel", {"label": "ä"}, alignment)


def record(step: int, numbers: int = 5, **fields: Any) -> Record:
    body = Body(4 * numbers)
    body.octets.view(np.float32)[:] = np.arange(numbers, dtype=np.float32) + step + 1
    return Record(Kind.STEP, step, 1000.0 + step, body, **fields)


def contents(path: Path) -> list[tuple[Any, ...]]:
    with reading(path) as (_, reader):
        return [told(one) for one in reader]


def told(one: Record) -> tuple[Any, ...]:
    return (one.kind, one.step, one.moment, one.loss, one.extras, one.updates_digest, one.body.octets.tobytes())


@pytest.fixture(params=[1, 4096], ids=["buffered", "direct"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    return Journal.begin(tmp_path / "00000001.journal", generation(alignment=request.param))
