"""`optserve serve`: the server."""

import gc
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optserve_server.commands.common import opened_database, settings_from

if TYPE_CHECKING:
    from fastapi import FastAPI

    from optserve_server.commands.draining import DrainingServer
    from optserve_server.settings import Settings
    from optserve_server.worker.supervisor import Supervisor

_BACKLOG = 2048  # connections that wait to be accepted


def serve(
    host: Annotated[str | None, typer.Option(help="The address to listen at.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="The port; 0 for any that is free.  [default: 8000]")] = None,
    uds: Annotated[Path | None, typer.Option(help="A Unix socket to listen at instead.")] = None,
    database_url: Annotated[
        str | None,
        typer.Option(help="sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE.  [default: SQLite in the data]"),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where data is kept.  [default: optserve-data]")] = None,
    default_optimizer: Annotated[
        str | None, typer.Option(help="What sessions get that name no optimizer.  [default: hierarchical]")
    ] = None,
    state_memory: Annotated[
        str | None, typer.Option(help="The most memory for hidden states, as 8GiB.  [default: half of the machine's]")
    ] = None,
    durability: Annotated[
        str | None, typer.Option(help="Whether a step is synced or only written: synced, relaxed.  [default: synced]")
    ] = None,
    park_after: Annotated[
        float | None, typer.Option(help="Seconds until an idle session leaves memory for the disk.  [default: 600]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes beside the server that carry out meta-training runs.  [default: 1]")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="What workers compute on: auto, cpu or cuda.  [default: auto]")
    ] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Serve other machines too while there is no API key.")
    ] = None,
) -> None:
    """Serve optimizers over HTTP.

    Every option is also an environment variable, OPTSERVE_HOST and so on, and a line of an optserve.toml.
    """
    from optserve_server import logs

    settings = settings_from(
        host=host,
        port=port,
        uds=uds,
        database_url=database_url,
        data_dir=data_dir,
        default_optimizer=default_optimizer,
        state_memory=state_memory,
        durability=durability,
        park_after=park_after,
        workers=workers,
        device=device,
        insecure=insecure,
    )
    _refuse_strangers(settings)
    _require_device(settings)
    # uvicorn raises the signal that stopped it once more at the end; it is no failure to be told to stop.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    _allow_many_files()
    listening = _listen(settings)
    logs.configure()
    _make_data_dir(settings)
    app = _app(settings)
    _require_default_optimizer(settings, app)
    with _supervisor(settings) as supervisor:
        server = _server(app, settings, listening, supervisor)
        server.run(sockets=[listening])
    if not server.started:
        raise typer.Exit(1)


def _refuse_strangers(settings: "Settings") -> None:
    if settings.may_be_open or _has_keys(settings):
        return
    raise typer.BadParameter(
        f"there is no API key, so everybody who reaches {settings.host} could use this server; make one with "
        "`optserve keys create`, listen at 127.0.0.1 or at a Unix socket (--uds), or say --insecure",
        param_hint="--host",
    )


def _has_keys(settings: "Settings") -> bool:
    from optserve_server.registry import api_keys

    with opened_database(settings) as database:
        if database.current() is None:
            return False
        database.upgrade()
        with database.session() as db_session:
            return api_keys.has_keys(db_session)


def _require_device(settings: "Settings") -> None:
    from optserve_server.worker.devices import find_device

    try:
        find_device(settings.device)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from error


def _supervisor(settings: "Settings") -> "Supervisor":
    from optserve_server.worker.supervisor import Supervisor

    return Supervisor(
        settings.workers, database_url=settings.database, device=settings.device, threads=settings.threads
    )


def _allow_many_files() -> None:
    # Each session that is awake has its journal open, beside the connections.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _listen(settings: "Settings") -> socket.socket:
    where = str(settings.uds) if settings.uds else f"{settings.host}:{settings.port}"
    try:
        return _listen_at_path(settings.uds) if settings.uds else _listen_at_address(settings.host, settings.port)
    except OSError as error:
        hint = "" if settings.uds else "; choose another with --port, or --port 0 for any that is free"
        typer.secho(f"error: cannot listen at {where}: {error.strerror or error}{hint}", err=True, fg="red")
        raise typer.Exit(1) from error


def _listen_at_address(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(address)
    listening.listen(_BACKLOG)
    return listening


def _listen_at_path(path: Path) -> socket.socket:
    if path.is_socket() and not _answers(path):
        path.unlink()  # left behind by a server that is gone
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    path.chmod(0o600)
    listening.listen(_BACKLOG)
    return listening


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def _make_data_dir(settings: "Settings") -> None:
    place = settings.data_dir
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file; name a directory" if place.is_file() else error.strerror
        raise typer.BadParameter(
            f"{place} cannot be the server's directory: {reason}", param_hint="--data-dir"
        ) from error


def _require_default_optimizer(settings: "Settings", app: "FastAPI") -> None:
    from optserve_server.registry import optimizers
    from optserve_server.registry.errors import RegistryError

    try:
        with app.state.database.session() as db_session:
            optimizers.resolve(db_session, settings.default_optimizer)
    except RegistryError as error:
        raise typer.BadParameter(str(error), param_hint="--default-optimizer") from error


def _app(settings: "Settings") -> "FastAPI":
    from sqlalchemy.exc import SQLAlchemyError

    from optserve_server.app import create_app
    from optserve_server.registry.errors import RegistryError
    from optserve_server.sessions.storage.errors import DirectoryInUse

    try:
        return create_app(settings)
    except DirectoryInUse as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        raise typer.Exit(1) from error
    except (ValueError, SQLAlchemyError, RegistryError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
        typer.secho(f"error: the database cannot be opened: {reason}", err=True, fg="red")
        raise typer.Exit(1) from error


def _server(
    app: "FastAPI", settings: "Settings", listening: socket.socket, supervisor: "Supervisor"
) -> "DrainingServer":
    import torch
    import uvicorn

    from optserve_server.api.protocol import Protocol
    from optserve_server.commands.draining import DrainingServer

    # Small steps are slower on torch's threads than on one; large ones are shared out page by page.
    torch.set_num_threads(1)
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        loop="uvloop",
        lifespan="on",
        access_log=False,  # the application writes its own
        log_config=None,  # as `logs` has configured it
        log_level="warning",
        server_header=False,
        backlog=_BACKLOG,
    )
    return DrainingServer(
        config,
        app.state.drain,
        when_started=lambda: _begin(settings, listening),
        when_told_to_stop=supervisor.stop,
    )


def _begin(settings: "Settings", listening: socket.socket) -> None:
    # What is there now stays. Each time it was looked through for garbage it held the event loop up for 0.1 s.
    gc.collect()
    gc.freeze()
    _greet(settings, listening)


def _greet(settings: "Settings", listening: socket.socket) -> None:
    import optserve
    from optserve_server.optimizers.serving import IN_NUMBA

    if settings.uds is not None:
        url, docs = f"unix://{settings.uds.absolute()}", "/docs on that socket"
    else:
        host, port = listening.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        docs = f"{url}/docs"
    typer.echo(
        f"optserve {optserve.__version__} serves at {url}\n"
        f"  documentation      {docs}\n"
        f"  default optimizer  {settings.default_optimizer}\n"
        f"  kernel             numba for {', '.join(IN_NUMBA)}; torch for all others\n"
        f"  workers            {settings.workers or 'none; `optserve worker` starts one'}\n"
        f"  data               {settings.data_dir.absolute()}\n"
        "Stop it with Ctrl-C."
    )
