"""What the client's commands share: how they find the server, and how they print.

Whatever takes long to import is imported when a command runs, for `optserve --help` should not wait for it.
"""

import dataclasses
import json
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from optserve.client import Client

RETRIES = 1  # a person is waiting, and can try again

Url = Annotated[
    str | None,
    typer.Option(
        envvar="OPTSERVE_URL", help="Where the server is: http://HOST:PORT or unix:///PATH.", show_default=False
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="OPTSERVE_API_KEY", help="The API key, where the server wants one.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def connect(url: str | None, api_key: str | None, retries: int = RETRIES) -> "Client":
    """The client for one command."""
    from optserve.client import Client

    return Client(url, api_key, retries=retries)


def print_json(value: Any) -> None:
    """Print a dataclass, or a list of them, as JSON and nothing else."""
    typer.echo(json.dumps(value, indent=2, default=dataclasses.asdict, ensure_ascii=False))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, unbroken: Collection[str] = frozenset()
) -> None:
    """Print a table; None is an empty cell. Where it is too wide, only columns that are not `unbroken` are folded."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in unbroken)
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    Console().print(table)


def short(number: object) -> str | None:
    """A cell of a table: a number with four digits, whatever is none (None too) as it is."""
    return None if number is None else f"{number:.4g}" if isinstance(number, float) else str(number)


def minute(moment: str | None) -> str | None:
    """An RFC 3339 time, to the minute."""
    return moment and moment[:16].replace("T", " ")


def fail(message: str) -> typer.Exit:
    """One line on stderr; raise what it returns."""
    typer.secho(f"error: {message}", err=True, fg=typer.colors.RED)
    return typer.Exit(1)
