"""What the demo shows: a table and a picture."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from optserve_server.demo.training import LEARNING_RATES, Curve


def table(learned: Curve, baselines: Sequence[Curve], *, seeds: int) -> Table:
    """Losses on the way and at the end, the served optimizer first."""
    result = Table(
        title=f"A digits classifier: training loss, mean of {seeds} seeds",
        caption=f"Adam and SGD: plain PyTorch, each at its best of {len(LEARNING_RATES)} learning rates.\n"
        "Accuracy: on 1,000 images that the classifier has not seen.",
    )
    steps = learned.losses.shape[1] - 1
    marks = [steps // 10, steps // 2, steps]
    result.add_column("optimizer", no_wrap=True)
    for mark in marks:
        result.add_column(f"step {mark}", justify="right")
    result.add_column("accuracy", justify="right")
    result.add_column("ms a step", justify="right")
    for curve in (learned, *baselines):
        means = curve.losses.mean(dim=0)
        cells = [f"{means[mark]:.4f}" for mark in marks]
        style = "bold" if curve is learned else None
        result.add_row(
            curve.label, *cells, f"{curve.accuracy:.1%}", f"{1000 * curve.seconds_per_step:.2f}", style=style
        )
    return result


def plot(curves: Sequence[Curve], file: Path) -> None:
    """Mean losses with the range over seeds, on a logarithmic scale."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for curve in curves:
        losses = curve.losses.numpy()
        axes.plot(losses.mean(axis=0), label=curve.label, linewidth=1.8)
        axes.fill_between(range(losses.shape[1]), losses.min(axis=0), losses.max(axis=0), alpha=0.15)
    axes.set(yscale="log", xlabel="step", ylabel="training loss", title="Digits classifier, 1,510 coordinates")
    axes.grid(alpha=0.3)
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)
