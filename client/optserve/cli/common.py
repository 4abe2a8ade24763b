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

_WIDTH_ELSEWHERE = 200  # of tables that are not for a terminal, which would break the lines
_FOLDED_WIDTH = 12  # of a folded column, at least
_GAP = 2  # between two columns

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
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    unbroken: Collection[str] = frozenset(),
    dispensable: Sequence[str] = (),
) -> None:
    """Print a table; None is an empty cell.

    Where it is too wide for the terminal, the `dispensable` columns go, one by one; what is not `unbroken` is folded.
    A terminal that is narrower still breaks the lines itself: what is unbroken is always printed in one piece.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    texts = [columns, *(["" if cell is None else str(cell) for cell in row] for row in rows)]
    needed = [(column[0], _least_width(column, column[0] in unbroken)) for column in zip(*texts, strict=True)]
    console = Console()
    width = console.width if console.is_terminal else _WIDTH_ELSEWHERE
    left_out = _left_out(needed, width, dispensable) if console.is_terminal else []
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, least in needed:
        if name not in left_out:
            table.add_column(name, overflow="fold", no_wrap=name in unbroken, min_width=least)
    for row in texts[1:]:
        table.add_row(*(Text(cell) for name, cell in zip(columns, row, strict=True) if name not in left_out))
    Console(width=max(width, _total(needed, left_out))).print(table)
    if left_out:
        typer.echo(f"(for want of room without: {', '.join(left_out)}; --json prints all)", err=True)


def _least_width(texts: Iterable[str], is_unbroken: bool) -> int:
    from rich.cells import cell_len

    widest = max(cell_len(line) for text in texts for line in text.split("\n"))
    return widest if is_unbroken else min(widest, _FOLDED_WIDTH)


def _left_out(needed: Sequence[tuple[str, int]], width: int, dispensable: Sequence[str]) -> Sequence[str]:
    """The columns that have to go, of those that may, in their order."""
    for count in range(len(dispensable)):
        if _total(needed, dispensable[:count]) <= width:
            return dispensable[:count]
    return dispensable


def _total(needed: Sequence[tuple[str, int]], left_out: Sequence[str]) -> int:
    return sum(least + _GAP for name, least in needed if name not in left_out) - _GAP


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
