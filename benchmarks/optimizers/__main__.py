"""`make tables`: evaluate the optimizers on both suites, and write the tables of README.md and docs/optimizers.md.

What has been evaluated before comes from the cache of `optserve evaluate --local`. The costs of a step come from
`python -m benchmarks.optimizers.steps`, which has to run while the machine does nothing else.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.optimizers import blocks, ingredients, rows, steps, subjects
from benchmarks.optimizers.evaluating import Evaluation, carry_out
from benchmarks.optimizers.subjects import Subjects
from optserve_server.evaluation import plots

STANDARD, STRESS = {"suite": "standard"}, {"suite": "stress"}


def main() -> None:
    cut = {one.what: one.weights.read_bytes() for one in ingredients.cuts(ingredients.read()) if one.weights.exists()}
    write_tables(subjects.read(), cut, STANDARD, STRESS, subjects.ROOT, steps.FILE, os.cpu_count() or 1)


def write_tables(
    chosen: Subjects,
    cut: Mapping[str, bytes],
    standard: Mapping[str, Any],
    stress: Mapping[str, Any],
    root: Path,
    costs: Path,
    processes: int,
) -> None:
    """Carry the two plans out, and write README.md and docs/optimizers.md, with a picture, in the folder `root`.

    `cut` are the weights of a recipe cut short, by what was left out.
    """
    weights = subjects.weights(chosen, root)
    evaluations = [Evaluation(standard, weights), Evaluation(stress, weights)]
    for one in chosen.ablations:
        without = {one.what: (root / (one.weights or chosen.optimizers[0].weights)).read_bytes()}
        evaluations.append(Evaluation(standard, without).distorted(one.distortion.model_dump(mode="json")))
    evaluations += [Evaluation(standard, {what: data}).distorted({}) for what, data in cut.items()]
    result, under_stress, *others = carry_out(evaluations, processes)
    ablated, without = others[: len(chosen.ablations)], others[len(chosen.ablations) :]
    page = root / "docs" / "optimizers.md"
    picture = page.with_suffix(".png")
    plots.overview(result, picture)
    blocks.rewrite(root / "README.md", {"optimizers": rows.short(result)})
    blocks.rewrite(
        page,
        {
            "optimizers": [
                *rows.full(result, under_stress, steps.read(costs)),
                f"\n![Ratios to tuned Adam on every task]({picture.name})",
            ],
            "stress": rows.conditions(under_stress),
            "ablations": rows.ablations(result, ablated) if ablated else ["None yet."],
            "ingredients": rows.ingredients(result, without),
        },
    )
    print(f"{page} and {root / 'README.md'} are written")


if __name__ == "__main__":
    main()
