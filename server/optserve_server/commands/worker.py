"""`optserve worker`: carries out what is queued in the database."""

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from optserve_server.commands.common import DatabaseUrl, DataDir, opened_database, require_schema, settings_from

if TYPE_CHECKING:
    from types import FrameType

    import torch

    from optserve_server.registry.database import Database
    from optserve_server.settings import Settings

_NICENESS = 10
"""How far workers stand back for whatever serves on the same machine."""


def worker(
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    device: Annotated[
        str | None, typer.Option(help="auto (a GPU where there is one), cpu or cuda.  [default: auto]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; another number may change the last bits of φ.  [default: 1]")
    ] = None,
    stop_with_parent: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Carry out meta-training runs and evaluations, one at a time, until stopped (Ctrl-C).

    Any number of workers may share a database. One that is stopped gives its work back, and one that dies loses it to
    another within half a minute; either way a run goes on from its last training checkpoint, and an evaluation keeps
    the curves that are finished.
    """
    stop = threading.Event()
    _stop_at_signals(stop)
    if stop_with_parent:
        threading.Thread(target=_wait_for_parent, args=(stop,), daemon=True).start()
    settings = settings_from(database_url=database_url, data_dir=data_dir, device=device, threads=threads)
    found = _device(settings)
    with opened_database(settings) as database:
        if database.is_sqlite:  # in a new file it would wait for ever for work that a server queues elsewhere
            require_schema(database)
        database.upgrade()
        _work(database, settings, found, stop)


def _device(settings: "Settings") -> "torch.device":
    from optserve_server.worker.devices import find_device

    try:
        return find_device(settings.device)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from error


def _work(database: "Database", settings: "Settings", device: "torch.device", stop: threading.Event) -> None:
    import torch

    from optserve_server import logs
    from optserve_server.worker.worker import Worker

    logs.configure()
    torch.set_num_threads(settings.threads)
    Worker(database, device, stop, _NICENESS).work()


def _stop_at_signals(stop: threading.Event) -> None:
    def shut_down(number: int, frame: "FrameType | None") -> None:
        signal.signal(number, signal.SIG_DFL)  # who asks twice does not want to wait
        # In a thread, for the one that is interrupted here may be holding the event's lock.
        threading.Thread(target=stop.set).start()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, shut_down)


def _wait_for_parent(stop: threading.Event) -> None:
    os.read(sys.stdin.fileno(), 1)  # it ends when the parent is gone, which holds the other end
    stop.set()
