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
    """The weights file of the φ that the recipe ends with, averaged as it says; made unless it is there already.

    Its metadata has the recipe, and the `seconds` of processor time that it took.
    """
    torch.set_num_threads(1)
    recipe = recipes.load(recipe_file)
    target = directory / f"{recipe.name}.safetensors"
    if _is_of(target, recipe):
        print(f"{recipe.name}: meta-trained already", flush=True)
        return target
    state = _State(directory / recipe.name, recipe)
    loop = state.loop()
    _run(loop, state)
    metadata = {"recipe": _text(recipe), "seconds": f"{state.seconds:.0f}"}
    _write(target, weights.encode(loop.optimizer, loop.averaged_phi, metadata))
    return target


class _State:
    """Where a run is: a training checkpoint, with the recipe that it is of and the processor time spent so far."""

    def __init__(self, stem: Path, recipe: Recipe) -> None:
        self._checkpoint, self._notes = stem.with_suffix(".checkpoint"), stem.with_suffix(".json")
        self._recipe = recipe
        self._before = 0.0
        self._began = time.process_time()

    @property
    def seconds(self) -> float:
        return self._before + time.process_time() - self._began

    def loop(self) -> OuterLoop:
        notes = json.loads(self._notes.read_text()) if self._notes.exists() else {}
        if notes.get("recipe") != _text(self._recipe):
            return OuterLoop(self._recipe)
        self._before = notes["seconds"]
        return OuterLoop.resume(self._recipe, self._checkpoint.read_bytes())

    def save(self, loop: OuterLoop) -> None:
        self._notes.unlink(missing_ok=True)  # never beside a checkpoint of another recipe
        _write(self._checkpoint, loop.checkpoint())
        _write(self._notes, json.dumps({"recipe": _text(self._recipe), "seconds": self.seconds}).encode())


def _run(loop: OuterLoop, state: _State) -> None:
    name, outer_steps = loop.recipe.name, loop.recipe.meta_optimizer.outer_steps
    saved = told = state.seconds
    for progress in loop:
        if state.seconds - saved > _CHECKPOINT_SECONDS:
            state.save(loop)
            saved = state.seconds
        if state.seconds - told > _TELL_SECONDS:
            told = state.seconds
            left = told / progress.outer_step * (outer_steps - progress.outer_step) / 60
            print(
                f"{name}: outer step {progress.outer_step} of {outer_steps}, {left:.0f} minutes of processor time left",
                flush=True,
            )
    print(f"{name}: meta-trained in {state.seconds / 60:.1f} minutes of processor time", flush=True)


def _is_of(file: Path, recipe: Recipe) -> bool:
    return file.exists() and weights.decode(file.read_bytes())[2]["recipe"] == _text(recipe)


def _text(recipe: Recipe) -> str:
    return json.dumps(recipe.model_dump(mode="json"), sort_keys=True)


def _write(file: Path, data: bytes) -> None:
    part = file.with_name(file.name + ".part")
    part.write_bytes(data)
    part.replace(file)
