"""Meta-training by a recipe, which goes on where it was stopped."""

import json
import time
from pathlib import Path

import torch

from optserve_server.metatraining import recipes
from optserve_server.metatraining.outer_loop import OuterLoop
from optserve_server.metatraining.recipes import Recipe
from optserve_server.optimizers import weights

_CHECKPOINT_SECONDS = 20.0
_TELL_SECONDS = 60.0


def meta_train(recipe_file: Path, directory: Path) -> Path:
    """The weights file of the φ that the recipe ends with, averaged as it says; made unless it is there already."""
    torch.set_num_threads(1)
    recipe = recipes.load(recipe_file)
    target = directory / f"{recipe.name}.safetensors"
    if _is_of(target, recipe):
        print(f"{recipe.name}: meta-trained already", flush=True)
        return target
    checkpoint = directory / f"{recipe.name}.checkpoint"
    loop = _begin(recipe, checkpoint)
    _run(loop, checkpoint)
    _write(target, weights.encode(loop.optimizer, loop.averaged_phi, {"recipe": _text(recipe)}))
    checkpoint.unlink(missing_ok=True)
    return target


def _begin(recipe: Recipe, checkpoint: Path) -> OuterLoop:
    described = checkpoint.with_suffix(".recipe.json")
    if checkpoint.exists() and described.read_text() == _text(recipe):
        return OuterLoop.resume(recipe, checkpoint.read_bytes())
    described.write_text(_text(recipe))
    checkpoint.unlink(missing_ok=True)
    return OuterLoop(recipe)


def _run(loop: OuterLoop, checkpoint: Path) -> None:
    began = saved = told = time.monotonic()
    first = loop.outer_step
    for progress in loop:
        now = time.monotonic()
        if now - saved > _CHECKPOINT_SECONDS:
            _write(checkpoint, loop.checkpoint())
            saved = now
        if now - told > _TELL_SECONDS:
            left = (now - began) / (progress.outer_step - first) * (_outer_steps(loop) - progress.outer_step)
            print(
                f"{loop.recipe.name}: outer step {progress.outer_step} of {_outer_steps(loop)}, "
                f"loss {progress.loss:.4g}, {left / 60:.0f} minutes left",
                flush=True,
            )
            told = now
    print(f"{loop.recipe.name}: meta-trained in {(time.monotonic() - began) / 60:.1f} minutes", flush=True)


def _outer_steps(loop: OuterLoop) -> int:
    return loop.recipe.meta_optimizer.outer_steps


def _is_of(file: Path, recipe: Recipe) -> bool:
    return file.exists() and weights.decode(file.read_bytes())[2]["recipe"] == _text(recipe)


def _text(recipe: Recipe) -> str:
    return json.dumps(recipe.model_dump(mode="json"), sort_keys=True)


def _write(file: Path, data: bytes) -> None:
    part = file.with_name(file.name + ".part")
    part.write_bytes(data)
    part.replace(file)
