"""`optserve optimizers`: list, show, diff, promote, import, export."""

import json as jsonlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optserve.cli.common import ApiKey, AsJson, Url, connect, fail, minute, print_json, print_table, short

if TYPE_CHECKING:
    from optserve.client import Client
    from optserve.wire.bodies import OptimizerInfo, VersionInfo

app = typer.Typer(
    name="optimizers",
    no_args_is_help=True,
    help="Optimizers, their versions and aliases. A reference is NAME, NAME@7 or NAME@ALIAS.",
)

Reference = Annotated[str, typer.Argument(help="NAME, NAME@7 or NAME@ALIAS.", metavar="REF")]


@app.command("list")
def list_(url: Url = None, api_key: ApiKey = None, json: AsJson = False) -> None:
    """List every optimizer of the server. The one marked * is what a session gets that names none."""
    with connect(url, api_key) as client:
        found = client.optimizers.list()
    if json:
        print_json(found)
        return
    print_table(
        ("name", "kind", "latest", "champion", "description"),
        (
            (one.name + (" *" if one.default else ""), one.kind, one.latest, one.champion, one.description)
            for one in found
        ),
        unbroken=("name", "kind", "latest", "champion"),
    )


@app.command()
def show(
    reference: Annotated[str, typer.Argument(help="NAME, or one version: NAME@7 or NAME@ALIAS.", metavar="REF")],
    url: Url = None,
    api_key: ApiKey = None,
    json: AsJson = False,
) -> None:
    """Show one optimizer: its aliases, its versions, and what it takes; or where one version came from."""
    with connect(url, api_key) as client:
        if "@" in reference:
            version = client.optimizers.version(*_resolve(client, reference))
            print_json(version) if json else _print_version(version)
            return
        info = client.optimizers.get(reference)
    if json:
        print_json(info)
        return
    _print_facts(info)
    typer.echo()
    columns = ("version", "outer step", "held-out loss", "created", "aliases")
    rows = (
        (
            version.version,
            version.metrics.get("outer_step"),
            short(version.metrics.get("meta_loss_held_out")),
            minute(version.created_at),
            ", ".join(alias.alias for alias in info.aliases if alias.version == version.version),
        )
        for version in info.versions
    )
    print_table(columns, rows, unbroken={*columns} - {"aliases"})


@app.command()
def diff(
    before: Annotated[str, typer.Argument(help="NAME, NAME@7 or NAME@ALIAS.", metavar="REF")],
    after: Annotated[str, typer.Argument(help="What to compare it with.", metavar="REF")],
    url: Url = None,
    api_key: ApiKey = None,
    json: AsJson = False,
) -> None:
    """Show in what two versions differ: their architectures, and the recipes they were meta-trained by."""
    with connect(url, api_key) as client:
        found = client.optimizers.diff(*_resolve(client, before), after)
        versions = [client.optimizers.version(*_resolve(client, one)) for one in (found.before, found.after)]
    if json:
        print_json(found)
        return
    if not found.items:
        typer.echo(f"{found.before} and {found.after} have the same architecture and the same recipe")
    origins = zip(("run", "outer step", "held-out loss"), *map(_origin, versions), strict=True)
    rows = [(one.path, _value(one.before), _value(one.after)) for one in found.items]
    print_table(("", found.before, found.after), [*rows, *(row for row in origins if any(row[1:]))])


@app.command()
def promote(
    reference: Reference,
    evaluation: Annotated[
        str | None, typer.Option(metavar="ID", help="An evaluation in which it beat the present champion.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Take the present champion's place without proof that it is better.")
    ] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Make a version the champion: what the bare NAME means from now on. Sessions keep the version they have."""
    with connect(url, api_key) as client:
        name, version = _resolve(client, reference)
        before = client.optimizers.get(name).champion
        client.optimizers.promote(name, version, evaluation=evaluation, force=force)
    if before == version:
        typer.echo(f"{name}@{version} is the champion of {name} already")
        return
    instead = f"in place of {name}@{before}" if before else "which had none before"
    typer.echo(f"{name}@{version} is now the champion of {name}, {instead}")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="Weights as safetensors, with `architecture` in the metadata.")],
    name: Annotated[str | None, typer.Option(help="The optimizer; else the name in the file's metadata.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Make a weights file the next version of an optimizer."""
    weights = file.read_bytes()
    name = name or _name_in(file, weights)
    with connect(url, api_key) as client:
        version = client.optimizers.import_weights(name, weights)
    typer.echo(f"{file} is now {name}@{version.version}")


@app.command("export")
def export(
    reference: Reference,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write; else NAME-VERSION.safetensors.")
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Write a version's weights to a safetensors file."""
    with connect(url, api_key) as client:
        name, version = _resolve(client, reference)
        weights = client.optimizers.weights(name, version)
    target = output or Path(f"{name}-{version}.safetensors")
    target.write_bytes(weights)
    typer.echo(f"{name}@{version} is written to {target}")


def _print_facts(info: "OptimizerInfo") -> None:
    typer.echo(f"{info.name} ({info.kind}){': ' if info.description else ''}{info.description}")
    facts = {
        "uses": ", ".join(info.uses),
        "needs": ", ".join(info.needs),
        "hyperparameters": _pairs(info.hyperparameters),
    }
    _print_indented(facts)


def _print_version(info: "VersionInfo") -> None:
    typer.echo(f"{info.optimizer}@{info.version}")
    facts = {
        "sha256": info.sha256,
        "created": info.created_at,
        "parent": info.parent,
        "run": info.run,
        "architecture": _pairs(info.architecture),
        "metrics": _pairs({name: short(value) for name, value in info.metrics.items()}),
        "environment": _pairs(info.environment),
        "recipe": "with --json" if info.recipe else None,
    }
    _print_indented(facts)


def _origin(version: "VersionInfo") -> tuple[str | None, str | None, str | None]:
    """Its run, its outer step and its held-out loss."""
    metrics = version.metrics
    return version.run, short(metrics.get("outer_step")), short(metrics.get("meta_loss_held_out"))


def _print_indented(facts: Mapping[str, str | None]) -> None:
    for name, value in facts.items():
        if value:
            typer.echo(f"  {name}: {value}")


def _value(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else jsonlib.dumps(value, ensure_ascii=False)


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _resolve(client: "Client", reference: str) -> tuple[str, int]:
    """The optimizer's name and the version's number that a reference means now."""
    from optserve.optimizers import CHAMPION

    name, at, selector = reference.partition("@")
    if at and not selector:
        raise fail(f"{reference!r} names no version after the @; write {name}, {name}@7 or {name}@ALIAS")
    if selector.isdecimal():
        return name, int(selector)
    info = client.optimizers.get(name)
    aliases = {alias.alias: alias.version for alias in info.aliases}
    if not selector:
        return name, aliases.get(CHAMPION, info.latest)
    if selector not in aliases:
        raise fail(f"{name} has no alias {selector!r}; it has {', '.join(sorted(aliases)) or 'none'}")
    return name, aliases[selector]


def _name_in(file: Path, weights: bytes) -> str:
    from optserve.wire import tensors

    try:
        _, metadata = tensors.decode(weights)
    except ValueError as error:
        raise fail(f"{file} is {error}") from error
    if "optimizer" not in metadata:
        raise fail(f"the metadata of {file} names no optimizer; give it a name with --name")
    return metadata["optimizer"]
