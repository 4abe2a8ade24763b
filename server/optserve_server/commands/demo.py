"""`optserve demo`: see the whole of it in a minute."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    optimizer: Annotated[str, typer.Option(help="The served optimizer: NAME, NAME@7 or NAME@ALIAS.")] = "hierarchical",
    steps: Annotated[int, typer.Option(min=10, help="Training steps.")] = 100,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, with other initial values and minibatches.")] = 5,
    output: Annotated[Path, typer.Option(help="Folder for the picture, loss.png.")] = Path("demo"),
) -> None:
    """Train a digits classifier with a served, meta-trained optimizer, and with tuned Adam and SGD.

    Starts a server of its own, trains through HTTP, prints a table, draws loss.png, stops the server.
    """
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from optserve.torch import RemoteOptimizer
    from optserve_server.demo import report
    from optserve_server.demo.server_process import running_server
    from optserve_server.demo.training import LEARNING_RATES, train, tuned

    torch.set_num_threads(1)  # a classifier of 1,510 coordinates is slower on more
    console = Console()
    numbers = range(1, seeds + 1)
    with Progress(console=console, transient=True) as bar, running_server() as url:
        console.print(f"server at {url}, training through HTTP with [bold]{optimizer}[/bold]")
        task = bar.add_task("training", total=1 + 2 * len(LEARNING_RATES))
        learned = train(
            f"{optimizer}, untuned",
            lambda model: RemoteOptimizer(model.parameters(), optimizer, url, horizon=steps),
            steps=steps,
            seeds=numbers,
        )
        bar.advance(task)
        baselines = [
            tuned(name, torch_class, steps=steps, seeds=numbers, advance=lambda: bar.advance(task))
            for name, torch_class in (("Adam", torch.optim.Adam), ("SGD", torch.optim.SGD))
        ]
    console.print(report.table(learned, baselines, seeds=seeds))
    picture = output / "loss.png"
    report.plot([learned, *baselines], picture)
    console.print(f"losses drawn in {picture}; next: optserve serve, and the loop in README.md")
