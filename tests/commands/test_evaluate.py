"""`optserve evaluate`, as a person runs it."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from optserve import cli
from optserve.errors import OptimizerNotFound
from optserve_server.optimizers import build, weights


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    optimizer = build({"kind": "rnnprop", "hidden_size": 3, "layers": 1})
    file = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    file.write_bytes(weights.encode(optimizer, optimizer.initial_phi(torch.Generator().manual_seed(0))))
    return file


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "optserve" / "evaluations"


def evaluate(*arguments: object) -> Result:
    """In this process: one of its own would load PyTorch each time."""
    return CliRunner().invoke(cli.build(), ["evaluate", *map(str, arguments), "--local"])


def test_it_prints_tables_and_draws_the_curves(learned: Path, tmp_path: Path) -> None:
    picture = tmp_path / "curves.png"
    tasks = ("--tasks", "quadratic:dimension=3", "--tasks", "quadratic", "--steps", 10, "--baselines", "sgd,adam")
    result = evaluate(learned, *tasks, "--plot", picture)
    assert result.exit_code == 0, result.stderr
    assert "quadratic:dimension=3: loss after 10 steps, 5 seeds" in result.stdout
    ranking = result.stdout.partition("Ranking")[2]
    assert all(name in ranking for name in ("mine", "sgd", "adam"))
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 1000


def test_json_has_every_curve_and_an_svg_names_every_optimizer(learned: Path, tmp_path: Path) -> None:
    recipe, picture = tmp_path / "tasks.toml", tmp_path / "curves.svg"
    recipe.write_text('name = "x"\n[[tasks]]\nfamily = "quadratic"\nweight = 2.0\nparameters = { dimension = 2 }\n')
    options = ("--tasks", recipe, "--steps", 4, "--seeds", 2, "--baselines", "adam", "--json", "--plot", picture)
    printed = evaluate(learned, *options)
    result = json.loads(printed.stdout)
    assert result["tasks"][0]["weight"] == 2.0
    assert [curves["optimizer"] for curves in result["curves"]] == ["mine", "adam"]
    assert [len(seed) for seed in result["curves"][0]["losses"]] == [5, 5]
    assert len(result["curves"][1]["learning_rates"]) >= 7
    drawn = picture.read_bytes()
    assert drawn.startswith(b"<?xml")
    assert evaluate(learned, *options).stdout == printed.stdout
    assert picture.read_bytes() == drawn


SUITE = """
horizons = [4, 8]
seeds = 2
baselines = ["adam", "schedule-free-adamw"]
[[tasks]]
family = "quadratic"
parameters = { dimension = 2 }
[[tasks]]
family = "logistic-regression"
parameters = { data = "iris", rows = 5 }
[[tasks]]
family = "quadratic"
parameters = { dimension = 3 }
[[tasks]]
family = "classic-2d"
"""


def test_a_suite_of_ones_own_has_comparisons_pictures_and_a_document(
    learned: Path, tmp_path: Path, own_cache: Path
) -> None:
    suite, overview, curves, document = (tmp_path / name for name in ("mine.toml", "o.png", "c.svg", "d.md"))
    suite.write_text(SUITE)
    files = ("--overview", overview, "--plot", curves, "--markdown", document)
    result = evaluate(learned, "--suite", suite, *files)
    assert result.exit_code == 0, result.stderr
    assert "mine: final loss as a multiple of that of adam" in result.stdout
    compared = result.stdout.partition("mine beside each baseline")[2].partition("Ranking")[0]
    for baseline in ("adam", "schedule-free-adamw"):
        rows = [line.split() for line in compared.splitlines() if line.split()[:1] == [baseline]]
        assert [row[1] for row in rows] == ["all", "4", "8"]
        assert rows[0][-2] == "8"  # tasks at each number of steps
    assert "at the edge of their grid" not in result.stdout
    with Image.open(overview) as drawn:
        assert drawn.size[0] > 1000
        with_held_out = drawn.size[1]
    assert curves.read_bytes().startswith(b"<?xml")
    page = document.read_text()
    assert "4 tasks, 4, 8 steps, 2 seeds." in page
    assert page.count("| `logistic-regression:data=iris,rows=5` |") == 2
    assert "| mine | schedule-free-adamw | all | " in page
    assert all(line.endswith(" |") for line in page.splitlines() if line.startswith("| "))

    assert len(list(own_cache.rglob("*.json"))) == 8 * 3
    printed = json.loads(evaluate(learned, "--suite", suite, "--json").stdout)
    assert {one["steps"] for one in printed["comparisons"]} == {None, 4, 8}
    shorter = evaluate(learned, "--suite", suite, "--steps", 3, "--baselines", "sgd", "--json", "--no-cache")
    found = json.loads(shorter.stdout)
    assert [task["steps"] for task in found["tasks"]] == [3] * 4
    assert {one["optimizer"] for one in found["curves"]} == {"mine", "sgd"}
    assert len(list(own_cache.rglob("*.json"))) == 8 * 3 + 4 * 2  # what was computed anew is kept too
    quadratics = ("--tasks", "quadratic:dimension=2", "--tasks", "quadratic:dimension=3", "--tasks", "classic-2d")
    alone = evaluate(learned, *quadratics, "--steps", 3, "--seeds", 1, "--baselines", "sgd", "--overview", overview)
    assert alone.exit_code == 0, alone.stderr
    with Image.open(overview) as drawn:
        assert drawn.size[1] < with_held_out - 150  # a row less


def test_the_last_line_says_how_many_runs_diverged(learned: Path, tmp_path: Path) -> None:
    suite = tmp_path / "mine.toml"
    task = '[[tasks]]\nfamily = "quadratic"\ndistortion = { gradient_scale = 1e8 }\n'
    suite.write_text(f"steps = 3\nseeds = 2\nbaselines = []\n{task}")
    result = evaluate(learned, "--suite", suite)
    assert result.exit_code == 0, result.stderr
    assert "gradients × 1e+08" in result.stdout
    assert "Ranking" not in result.stdout
    assert result.stdout.splitlines()[-1] == "mine: 0 of 2 runs diverged"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "quadratics"), "did you mean 'quadratic'"),
        (("--tasks", "quadratic:dim=3"), "no parameter 'dim'"),
        (("--baselines", "adm"), "did you mean 'adam'"),
        (("--plot", "curves.pdf"), "must end in .svg or .png"),
        (("--overview", "curves.pdf"), "must end in .svg or .png"),
        (("--markdown", "nowhere/page.md"), "cannot be written"),
        (("--overview", "o.png", "--suite", "stress"), "ratios to the first baseline, and there is none"),
        (("--overview", "o.png", "--suite", "strss"), "did you mean 'stress'"),
        (("--seeds", 1000, "--tasks", "digits-mlp:hidden_sizes=[1024,1024,1024,1024]"), "GiB of memory, and there are"),
        (("--horizons", "100;500"), "100;500 is no list of numbers; write 100,500"),
        (("--horizons", "500,100"), "does not grow"),
        (("--suite", "standart"), "did you mean 'standard'"),
        (("--suite", "nowhere.toml"), "nowhere.toml"),
        (("--plot", "nowhere/curves.svg"), "cannot be written"),
    ],
)
def test_a_mistake_is_named_before_the_work(learned: Path, arguments: tuple[str, ...], message: str) -> None:
    result = evaluate(learned, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_a_file_that_is_no_optimizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tasks.toml").write_text("[unroll]\n")
    (tmp_path / "notes.safetensors").write_text("no")
    (tmp_path / "suite.toml").write_text("seed = 1\nhorizon = 5\n")
    for arguments, message in (
        ((tmp_path / "notes.safetensors",), "notes is no weights file"),
        ((tmp_path / "notes.safetensors", "--tasks", tmp_path / "tasks.toml"), "has no [[tasks]]"),
        ((tmp_path / "notes.safetensors", "--suite", tmp_path / "suite.toml"), "did you mean 'horizons'"),
    ):
        result = evaluate(*arguments)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.replace("│", " ").split())


def test_a_server_does_it_for_versions(start_server, tmp_path: Path) -> None:
    server = start_server("--workers", "1")
    picture = tmp_path / "curves.svg"
    options = ["--tasks", "quadratic:dimension=2", "--steps", "4", "--seeds", "2", "--baselines", "sgd"]
    words = ["evaluate", "rnnprop", "lstm@1", *options, "--plot", str(picture), "--url", server.url]
    result = CliRunner().invoke(cli.build(), words)
    assert result.exit_code == 0, result.stderr
    assert "it goes on if this command is stopped" in result.stderr
    ranking = result.stdout.partition("Ranking")[2]
    assert all(name in ranking for name in ("rnnprop@1", "lstm@1", "sgd"))
    assert picture.stat().st_size > 10_000

    evaluation_id = result.stderr.split()[1].rstrip(":")
    listed = CliRunner().invoke(cli.build(), ["evaluations", "list", "--url", server.url], env={"COLUMNS": "80"}).stdout
    assert listed.splitlines()[-1].split()[:5] == [evaluation_id, "rnnprop@1,", "lstm@1", "succeeded", "3/3"]
    show = ["evaluations", "show", evaluation_id, "--url", server.url]
    shown = CliRunner().invoke(cli.build(), show).stdout
    assert f"{evaluation_id}: succeeded, 3 of 3 curves" in shown
    assert all(name in shown.partition("score")[2] for name in ("rnnprop@1", "lstm@1", "sgd"))
    assert len(json.loads(CliRunner().invoke(cli.build(), [*show, "--json"]).stdout)["curves"]) == 3

    result = CliRunner().invoke(cli.build(), ["evaluate", "rnnprob", "--url", server.url])
    assert isinstance(result.exception, OptimizerNotFound)
