"""`optserve metatrain`, as a person runs it."""

import signal
import subprocess
from pathlib import Path

import pytest
import torch

from optserve_server import optimizers
from optserve_server.metatraining import recipes
from optserve_server.metatraining.outer_loop import OuterLoop
from optserve_server.metatraining.weight_files import Record
from optserve_server.optimizers import weights

RECIPE = """
name = "tiny"
[architecture]
kind = "lstm"
hidden_size = 4
layers = 1
[[tasks]]
family = "quadratic"
parameters = { dimension = 2 }
[unroll]
steps = 6
truncation = 3
[meta_optimizer]
kind = "adam"
outer_steps = 6
tasks_per_outer_step = 3
[checkpoints]
every = 3
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(RECIPE)
    return file


SEVERAL = """
name = "tiny"
[architecture]
kind = "lstm"
hidden_size = 4
layers = 1
[[tasks]]
family = "clusters-mlp"
choices = { hidden_sizes = [[2], [3]], activation = ["relu", "tanh"] }
[unroll]
steps = 200
truncation = 20
trajectories = 4
advance = 2
[gradient]
estimator = "nres"
[augmentation]
gradient_scaling = 0.5
[meta_optimizer]
kind = "adam"
outer_steps = 60
tasks_per_outer_step = 8
[checkpoints]
every = 20
"""


def metatrain(command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [command, "metatrain", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_it_writes_the_best_weights_beside_the_recipe(optserve_command: str, recipe: Path) -> None:
    result = metatrain(optserve_command, recipe, "--local")
    assert result.returncode == 0, result.stderr
    assert "outer step 1 of " in result.stdout
    assert "final loss on held-out tasks" in result.stdout
    optimizer, _, metadata = weights.decode(recipe.with_suffix(".safetensors").read_bytes())
    assert optimizer.kind == "lstm"
    assert metadata["optimizer"] == "tiny"


def test_the_same_recipe_writes_the_same_bytes(optserve_command: str, recipe: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert metatrain(optserve_command, recipe, "--local", "--output", tmp_path / name).returncode == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_it_starts_from_a_weight_file_beside_the_recipe(optserve_command: str, recipe: Path) -> None:
    optimizer = optimizers.build({"kind": "lstm", "hidden_size": 4, "layers": 1})
    phi = optimizer.initial_phi(torch.Generator().manual_seed(7))
    recipe.with_name("start.safetensors").write_bytes(weights.encode(optimizer, phi))
    standing_still = RECIPE.replace('kind = "adam"', 'kind = "adam"\nlearning_rate = 1e-30')
    recipe.write_text('start_from = "start.safetensors"\n' + standing_still)
    result = metatrain(optserve_command, recipe, "--local")
    assert result.returncode == 0, result.stderr
    _, found, _ = weights.decode(recipe.with_suffix(".safetensors").read_bytes())
    torch.testing.assert_close(found, phi, rtol=0, atol=1e-20)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("lstm@3", "there is no file"),
        ("lstm-8.safetensors", "has the architecture LSTM(hidden_size=8"),
        ("tiny.toml", "not a safetensors file"),
    ],
)
def test_what_it_cannot_start_from_is_named(optserve_command: str, recipe: Path, start: str, message: str) -> None:
    other = optimizers.build({"kind": "lstm", "hidden_size": 8})
    file = recipe.with_name("lstm-8.safetensors")
    file.write_bytes(weights.encode(other, other.initial_phi(torch.Generator())))
    recipe.write_text(f'start_from = "{start}"\n' + RECIPE)
    result = metatrain(optserve_command, recipe, "--local")
    assert result.returncode == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[unroll]", "[unrol]"), "did you mean 'unroll'"),
        (('family = "quadratic"', 'family = "quadratics"'), "did you mean 'quadratic'"),
        (("steps = 6", "steps = "), "is not TOML"),
    ],
)
def test_a_mistake_in_the_recipe_is_named(
    optserve_command: str, recipe: Path, change: tuple[str, str], message: str
) -> None:
    recipe.write_text(RECIPE.replace(*change))
    result = metatrain(optserve_command, recipe, "--local")
    assert result.returncode == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("output", ["nowhere/weights.safetensors", "."])
def test_an_output_that_cannot_be_written_is_told_before_the_work(
    optserve_command: str, recipe: Path, tmp_path: Path, output: str
) -> None:
    result = metatrain(optserve_command, recipe, "--local", "--output", tmp_path / output)
    assert result.returncode == 2
    assert "cannot be written" in " ".join(result.stderr.replace("│", " ").split())
    assert "outer step" not in result.stdout


def test_options_of_a_run_here_are_refused_for_one_on_the_server(optserve_command: str, recipe: Path) -> None:
    result = metatrain(optserve_command, recipe, "--output", "elsewhere.safetensors")
    assert result.returncode == 2
    assert "go with --local" in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.slow
def test_what_is_interrupted_goes_on_bit_for_bit(optserve_command: str, recipe: Path, tmp_path: Path) -> None:
    """By one process, then by two, then by one again; undisturbed by one, in this process."""
    recipe.write_text(SEVERAL)
    target, saved = tmp_path / "weights", tmp_path / "weights.checkpoint"
    words = [optserve_command, "metatrain", str(recipe), "--local", "--output", str(target)]
    for threads in ("1", "2"):
        began = saved.stat().st_mtime_ns if saved.exists() else 0
        process = subprocess.Popen(
            [*words, "--threads", threads], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        with process:
            assert process.stdout is not None
            assert process.stderr is not None
            heard = process.stdout.readline()  # of the first validation, or that it goes on
            process.send_signal(signal.SIGINT)
            assert process.wait() == 1
            told = process.stderr.read()
        assert "interrupted" in told
        assert f"the same command goes on from {saved}" in " ".join(told.split())
        assert saved.stat().st_mtime_ns > began
        assert ("going on behind outer step" in heard) == (threads == "2")
    last = metatrain(*words[:1], recipe, "--local", "--output", target)
    assert last.returncode == 0, last.stderr
    assert "going on behind outer step" in last.stdout
    assert not saved.exists()
    undisturbed, record = OuterLoop(recipes.load(recipe), device="cpu"), Record()
    for progress in undisturbed:
        record.add(progress, undisturbed)
    assert target.read_bytes() == record.encode(undisturbed.recipe)


def test_a_training_checkpoint_of_another_recipe_or_of_something_else_is_not_gone_on_from(
    optserve_command: str, recipe: Path
) -> None:
    saved = recipe.with_suffix(".safetensors.checkpoint")
    saved.write_bytes(b"nonsense")
    result = metatrain(optserve_command, recipe, "--local")
    assert result.returncode == 2
    told = " ".join(result.stderr.replace("│", " ").split())
    assert "cannot go on from" in told
    assert "remove it to begin anew" in told
    assert saved.read_bytes() == b"nonsense"
