"""`optserve metatrain` on a server, and `optserve runs`: list, show, follow, cancel, resume."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optserve.cli.common import ApiKey, AsJson, Url, connect, fail, minute, print_json, print_table, short

if TYPE_CHECKING:
    from optserve.wire.meta_training import RunInfo

_PATIENCE = 8  # tries, over half a minute: the run goes on while the server restarts

app = typer.Typer(name="runs", no_args_is_help=True, help="Meta-training runs: `optserve metatrain` launches them.")

RunId = Annotated[str, typer.Argument(help="The run's id.", metavar="ID")]
Recipe = Annotated[Path, typer.Argument(help="The recipe, a TOML file; recipes/ has examples.", exists=True)]
Detach = Annotated[bool, typer.Option("--detach", help="Launch the run, print its id, and do not wait for it.")]


def metatrain(recipe: Recipe, detach: Detach = False, url: Url = None, api_key: ApiKey = None) -> None:
    """Meta-train an optimizer by a recipe, in the background on the server, and show how far it is.

    Ctrl-C ends the showing, not the run.
    """
    submit(recipe, detach=detach, url=url, api_key=api_key)


def submit(recipe: Path, *, detach: bool, url: str | None, api_key: str | None) -> None:
    """Launch a run, and follow it unless told to `detach`."""
    with connect(url, api_key) as client:
        run_id = client.meta_training.launch(recipe).id
    typer.echo(run_id)
    if not detach:
        _follow(run_id, url, api_key)


@app.command("list")
def list_(url: Url = None, api_key: ApiKey = None, json: AsJson = False) -> None:
    """List every run of the server, the newest first."""
    with connect(url, api_key) as client:
        found = [run.info for run in client.meta_training.list()]
    if json:
        print_json(found)
        return
    columns = ("id", "name", "status", "outer step", "held-out\nloss", "created")
    rows = (
        (
            one.id,
            one.name,
            one.status,
            f"{one.outer_step}/{one.outer_steps}",
            short(one.meta_loss_held_out),
            minute(one.created_at),
        )
        for one in found
    )
    print_table(columns, rows, unbroken={*columns} - {"name"})


@app.command()
def show(run_id: RunId, url: Url = None, api_key: ApiKey = None, json: AsJson = False) -> None:
    """Show one run."""
    with connect(url, api_key) as client:
        info = client.meta_training.get(run_id).info
    _print(info, json)


@app.command()
def follow(run_id: RunId, url: Url = None, api_key: ApiKey = None) -> None:
    """Show how far a run is until it is over. Ctrl-C ends the showing, not the run."""
    _follow(run_id, url, api_key)


@app.command()
def cancel(run_id: RunId, url: Url = None, api_key: ApiKey = None, json: AsJson = False) -> None:
    """End a run: at its next outer step, with a version of what it has learned so far."""
    with connect(url, api_key) as client:
        info = client.meta_training.get(run_id).cancel()
    _print(info, json)


@app.command()
def resume(
    run_id: RunId,
    outer_steps: Annotated[int | None, typer.Option(min=1, help="How many it shall make in all.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: AsJson = False,
) -> None:
    """Let a run that is over go on from its last training checkpoint; one that succeeded needs --outer-steps."""
    with connect(url, api_key) as client:
        info = client.meta_training.get(run_id).resume(outer_steps)
    _print(info, json)


def _follow(run_id: str, url: str | None, api_key: str | None) -> None:
    try:
        with connect(url, api_key, _PATIENCE) as client:
            info = client.meta_training.get(run_id).wait(progress=True)
    except KeyboardInterrupt as interrupt:
        typer.echo(
            f"the run goes on without you: `optserve runs follow {run_id}` shows it again, "
            f"`optserve runs cancel {run_id}` ends it",
            err=True,
        )
        raise typer.Exit(130) from interrupt
    ended = f"{info.status} at outer step {info.outer_step}; versions: {_versions(info) or 'none'}"
    if info.status != "succeeded":
        raise fail(ended)
    typer.echo(ended)


def _print(info: "RunInfo", json: bool) -> None:
    if json:
        print_json(info)
        return
    typer.echo(f"{info.id}: {info.name}, {info.status}, outer step {info.outer_step} of {info.outer_steps}")
    facts = {
        "error": info.error,
        "cancel requested": "its worker ends it at its next outer step" if _is_ending(info) else None,
        "meta-loss": short(info.meta_loss),
        "held-out loss": short(info.meta_loss_held_out),
        "versions": _versions(info),
        "left": None if info.eta_seconds is None else f"{info.eta_seconds:.0f} s",
        "worker": f"{info.worker} on {info.device}, attempt {info.attempt}" if info.worker else None,
        "created": f"{info.created_at} by {info.owner}",
        "finished": info.finished_at,
    }
    for name, value in facts.items():
        if value:
            typer.echo(f"  {name}: {value}")


def _is_ending(info: "RunInfo") -> bool:
    return info.cancel_requested and info.finished_at is None


def _versions(info: "RunInfo") -> str:
    """`tiny@3`, or `tiny@3 … tiny@9`."""
    names = [f"{info.name}@{number}" for number in info.versions]
    return " … ".join(dict.fromkeys((names[0], names[-1]))) if names else ""
