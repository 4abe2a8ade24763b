"""`python -m benchmarks.optimizers.ingredients`: meta-train a recipe cut short, whole and without each ingredient.

What to leave out is in ingredients.toml. A weights file that is there already is left as it is.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import Field

from benchmarks.optimizers.subjects import ROOT
from optserve_server.descriptions import DescriptionError, Table, parse, read_toml

FILE = Path(__file__).parent / "ingredients.toml"
FOLDER = Path(__file__).parent / "ablations"


class Ingredient(Table):
    """What is taken out of a recipe, and how."""

    what: str
    file: str
    set: dict[str, dict[str, Any]] = Field(default_factory=dict)
    families: tuple[str, ...] | None = None

    def without(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """The recipe without it."""
        changed = {**recipe, **{table: {**recipe[table], **values} for table, values in self.set.items()}}
        if self.families is not None:
            changed["tasks"] = [share for share in recipe["tasks"] if share["family"] in self.families]
        return changed


class Ingredients(Table):
    """A recipe's path from the repository's root, and what is taken out of it."""

    recipe: str
    outer_steps: int
    seeds: int
    ablations: tuple[Ingredient, ...]


@dataclass(frozen=True)
class Cut:
    """A recipe cut short."""

    what: str
    weights: Path
    recipe: dict[str, Any]


def read(file: Path = FILE) -> Ingredients:
    """The ingredients of a file.

    Raises:
        DescriptionError: it cannot be read, or names what there is not.
    """
    return parse(Ingredients, read_toml(file, DescriptionError), DescriptionError)


def cuts(chosen: Ingredients, root: Path = ROOT, folder: Path = FOLDER) -> Iterator[Cut]:
    """The whole recipe with each seed, and then without each ingredient."""
    recipe = dict(read_toml(root / chosen.recipe, DescriptionError))
    del recipe["validation"]
    recipe["meta_optimizer"]["outer_steps"] = recipe["checkpoints"]["every"] = chosen.outer_steps
    for seed in range(chosen.seeds):
        yield Cut(f"nothing (seed {seed})", folder / f"whole-{seed}.safetensors", {**recipe, "seed": seed})
    for one in chosen.ablations:
        yield Cut(one.what, folder / f"{one.file}.safetensors", one.without(recipe))


def main() -> None:
    """As many at a time as there are cores."""
    FOLDER.mkdir(exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in pool.map(_meta_train, cuts(read())):
            print(done, flush=True)


def _meta_train(cut: Cut) -> str:
    recipe = cut.weights.with_suffix(".toml")
    if cut.weights.exists():
        return f"{cut.weights} is there"
    recipe.write_text(tomlkit.dumps(cut.recipe), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "optserve", "metatrain", str(recipe), "--local"], check=True)
    recipe.unlink()
    return f"{cut.weights} is written"


if __name__ == "__main__":
    main()
