"""`optserve metatrain`: learn an optimizer from a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from optserve.cli.common import ApiKey, Url
from optserve.cli.runs import Detach, submit


def metatrain(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML file; recipes/ has examples.", exists=True)],
    local: Annotated[bool, typer.Option("--local", help="Run here, without a server.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="With --local: where the weights go. Default: RECIPE with .safetensors for .toml."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --local: CPU cores. Where an outer step advances several trajectories, as many processes share "
            "them; elsewhere another number may change the last bits of φ. Default: 1.",
        ),
    ] = None,
    detach: Detach = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Meta-train an optimizer by a recipe: in the background on the server, or with --local here.

    On the server every checkpoint becomes a version. Ctrl-C ends the showing, not the run.

    With --local the optimizer is tried on held-out tasks at every checkpoint, and its weights are written if it is the
    best so far; so the file is there early, and stays if this is stopped (Ctrl-C, which waits for the present outer
    step). The same command then goes on where it was, from OUTPUT.checkpoint, which is written every half minute and
    when it is stopped, and removed at the end.
    """
    if local:
        from optserve_server.commands import local_training  # brings torch

        local_training.run(recipe, output or recipe.with_suffix(".safetensors"), threads or 1)
        return
    if output is not None or threads is not None:
        raise typer.BadParameter("--output and --threads go with --local; on the server the weights become versions")
    submit(recipe, detach=detach, url=url, api_key=api_key)
