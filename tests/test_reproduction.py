"""`make reproduce`, with recipes of a moment."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from optserve_server.optimizers import weights

ROOT = Path(__file__).parents[1]

RECIPE = """
name = "tiny"
[architecture]
kind = "lstm"
hidden_size = 2
layers = 1
[[tasks]]
family = "quadratic"
parameters = { dimension = 2 }
[unroll]
steps = 4
truncation = 2
[meta_optimizer]
kind = "adam"
outer_steps = 5
tasks_per_outer_step = 2
"""


@pytest.fixture
def reproduction(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    import benchmarks.reproduction.__main__ as reproduction

    monkeypatch.setattr(reproduction, "PROCESSES", 1)
    return reproduction


def test_the_page_has_a_table_a_picture_and_a_verdict_for_every_study(
    reproduction: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    tasks = {"small bowls": {"family": "quadratic", "parameters": {"dimension": 2}}}
    studies = [
        reproduction.Study(f"bowls-{steps}", f"Bowls, {steps} steps", "tiny.toml", tasks, steps=steps, seeds=2)
        for steps in (4, 6)
    ]
    reproduction.reproduce(studies, tmp_path, tmp_path / "working", tmp_path)
    page = (tmp_path / "reproduction.md").read_text(encoding="utf-8")
    for steps in (4, 6):
        assert f"| small bowls, {steps} steps | " in page
        assert f"**small bowls**, {steps} steps, 2 seeds:" in page
        assert f"![Bowls, {steps} steps](reproduction-bowls-{steps}.png)" in page
        assert (tmp_path / f"reproduction-bowls-{steps}.png").stat().st_size > 10_000
    assert page.count("| NAG | ") == 2
    # An untrained φ is no match for tuned baselines, and the page says so.
    assert "It does not on:" in page
    assert "It ends below every tuned baseline" not in page

    assert "tiny: meta-trained in" in capfd.readouterr().out
    reproduction.reproduce(studies, tmp_path, tmp_path / "working", tmp_path)
    assert "tiny: meta-trained already" in capfd.readouterr().out
    assert (tmp_path / "reproduction.md").read_text(encoding="utf-8") == page


def test_meta_training_that_was_stopped_goes_on(
    reproduction: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.reproduction import training

    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE)
    for directory in ("whole", "stopped"):
        (tmp_path / directory).mkdir()
    whole = training.meta_train(recipe, tmp_path / "whole")

    monkeypatch.setattr(training, "_CHECKPOINT_SECONDS", 0.0)
    save = training._State.save

    def save_and_stop(state, loop) -> None:
        save(state, loop)
        if loop.outer_step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(training._State, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        training.meta_train(recipe, tmp_path / "stopped")
    monkeypatch.setattr(training._State, "save", save)
    steps = []
    monkeypatch.setattr(training.OuterLoop, "_outer_step", _recording(training.OuterLoop._outer_step, steps))
    resumed = training.meta_train(recipe, tmp_path / "stopped")
    assert steps == [4, 5]
    phi, expected = (weights.decode(file.read_bytes())[1] for file in (resumed, whole))
    assert all(torch.equal(phi[name], weight) for name, weight in expected.items())


def _recording(outer_step, steps: list[int]):
    def recorded(loop, number: int):
        steps.append(number)
        return outer_step(loop, number)

    return recorded
