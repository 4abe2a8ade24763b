"""Meta-training through the client and its command line, on a server with a worker."""

import asyncio
import json
import pickle

import pytest

import optserve
from optserve import cli
from optserve.meta_training import SharedRun

TOML = """
name = "commanded"
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
outer_steps = 6
tasks_per_outer_step = 3
[checkpoints]
every = 3
"""


@pytest.fixture(scope="module")
def client(server_with_worker):
    with optserve.Client(server_with_worker.url) as client:
        yield client


@pytest.fixture
def run_command(server_with_worker, run_at, tmp_path):
    """Runs `optserve …` beside a recipe."""
    (tmp_path / "recipe.toml").write_text(TOML)
    return run_at(server_with_worker.url)


def recipe(tiny_recipe, outer_steps=6, **changes):
    return {**tiny_recipe, "meta_optimizer": {**tiny_recipe["meta_optimizer"], "outer_steps": outer_steps}, **changes}


# --- Python -----------------------------------------------------------------------------------------------------------


def test_a_run_is_launched_watched_and_resumed(client, tiny_recipe, capsys):
    run = client.meta_training.launch(recipe(tiny_recipe, name="launched"))
    assert run.info.status == "queued"
    info = run.wait(progress=True)
    assert info is run.info
    assert (info.status, info.outer_step, info.versions) == ("succeeded", 6, [1, 2])
    bar = capsys.readouterr().err
    assert "launched@2: meta-loss" in bar
    assert "6/6" in bar
    rows = run.metrics()
    assert [row["outer_step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["meta_loss"] == info.meta_loss
    with pytest.raises(optserve.errors.RunConflict):
        run.resume()
    with pytest.raises(optserve.errors.RequestInvalid, match="as many, or more"):
        run.resume(5)
    assert run.resume(9).status == "queued"
    assert run.wait().versions == [1, 2, 3]
    assert capsys.readouterr().err == ""
    again = client.meta_training.get(run.id)
    assert again.info == run.info
    assert repr(again) == f"<Run {run.id}: launched, succeeded, outer step 9 of 9>"
    assert run.id in [one.id for one in client.meta_training.list()]


def test_a_run_is_cancelled(client, tiny_recipe):
    run = client.meta_training.launch(recipe(tiny_recipe, 1_000_000, checkpoints={"every": 1_000_000}))
    while not run.refresh().outer_step:
        pass
    assert run.cancel().cancel_requested
    assert run.wait().status == "cancelled"
    assert run.cancel().status == "cancelled"


def test_a_run_that_failed_raises_with_the_reason(client, tiny_recipe):
    run = client.meta_training.launch(
        recipe(
            tiny_recipe,
            architecture={"kind": "lstm", "hidden_size": 4, "output_scale": 1e6},
            meta_optimizer={"learning_rate": 1e30, "outer_steps": 20},
        )
    )
    with pytest.raises(optserve.errors.RunFailed, match=rf"run {run.id} failed: outer step \d+, quadratic: ") as raised:
        run.wait()
    assert raised.value.info.status == "failed"
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (str(copy), copy.info) == (str(raised.value), raised.value.info)


def test_what_is_no_recipe_is_told_by_its_key(client, tiny_recipe, tmp_path):
    with pytest.raises(optserve.errors.RecipeInvalid, match="did you mean 'unroll'") as raised:
        client.meta_training.launch({**tiny_recipe, "unrol": {}})
    assert raised.value.path == "unrol"
    (tmp_path / "broken.toml").write_text("name = ")
    with pytest.raises(optserve.errors.RecipeInvalid, match="is not TOML"):
        client.meta_training.launch(tmp_path / "broken.toml")
    with pytest.raises(FileNotFoundError):
        client.meta_training.launch(str(tmp_path / "missing.toml"))
    with pytest.raises(optserve.errors.RunNotFound):
        client.meta_training.get("nothing")


def test_all_of_it_awaited(server_with_worker, tmp_path):
    (tmp_path / "recipe.toml").write_text(TOML)

    async def main():
        async with optserve.AsyncClient(server_with_worker.url) as client:
            run = await client.meta_training.launch(tmp_path / "recipe.toml")
            info = await run.wait()
            assert (await run.metrics())[-1]["meta_loss"] == info.meta_loss
            assert (await (await client.meta_training.get(run.id)).refresh()) == info
            assert run.id in [one.id for one in await client.meta_training.list()]
            return info

    assert asyncio.run(main()).status == "succeeded"


# --- the command line -------------------------------------------------------------------------------------------------


def test_metatrain_shows_the_run_to_its_end(run_command, monkeypatch):
    result = run_command("metatrain", "recipe.toml")
    assert result.code == 0
    run_id, end = result.stdout.splitlines()
    assert end.startswith("succeeded at outer step 6; versions: commanded@")
    assert "6/6" in result.stderr
    shown = run_command("runs", "show", run_id)
    assert shown.stdout.startswith(f"{run_id}: commanded, succeeded, outer step 6 of 6\n")
    info = json.loads(run_command("runs", "show", run_id, "--json").stdout)
    assert (info["id"], info["recipe"]["name"]) == (run_id, "commanded")
    assert f"  held-out loss: {info['meta_loss_held_out']:.4g}\n" in shown.stdout
    monkeypatch.setenv("COLUMNS", "80")
    (row,) = (line for line in run_command("runs", "list").stdout.splitlines() if run_id in line)
    created = info["created_at"][:16].replace("T", " ")
    assert row.split() == [
        *(run_id, "commanded", "succeeded", "6/6"),
        *(f"{info['meta_loss_held_out']:.4g}", *created.split()),
    ]
    assert run_id in [one["id"] for one in json.loads(run_command("runs", "list", "--json").stdout)]
    assert run_command("runs", "follow", run_id).stdout == end + "\n"
    refused = run_command("runs", "resume", run_id)
    assert (refused.code, refused.stderr.count("\n")) == (1, 1)
    assert "outer_steps" in refused.stderr
    resumed = json.loads(run_command("runs", "resume", run_id, "--outer-steps", "8", "--json").stdout)
    assert (resumed["status"], resumed["outer_steps"]) == ("queued", 8)
    assert run_command("runs", "follow", run_id).code == 0


def test_metatrain_can_be_left_and_the_run_cancelled(run_command, tmp_path, monkeypatch):
    (tmp_path / "recipe.toml").write_text(TOML.replace("outer_steps = 6", "outer_steps = 100000"))
    launched = run_command("metatrain", "recipe.toml", "--detach")
    (run_id,) = launched.stdout.splitlines()
    with monkeypatch.context() as patch:

        def interrupted(self, delay=0.0):
            raise KeyboardInterrupt

        patch.setattr(SharedRun, "_refresh", interrupted)
        left = run_command("runs", "follow", run_id)
    assert left.code == 130
    assert f"`optserve runs follow {run_id}` shows it again" in left.stderr
    assert f"`optserve runs cancel {run_id}` ends it" in left.stderr
    assert "outer step" in run_command("runs", "cancel", run_id).stdout
    ended = run_command("runs", "follow", run_id)
    assert ended.code == 1
    assert "error: cancelled at outer step" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("metatrain", "wrong.toml"), "did you mean 'unroll'"),
        (("metatrain", "recipe.toml", "--url", "http://127.0.0.1:9"), "optserve serve"),
        (("runs", "show", "nothing"), "no meta-training run 'nothing'"),
        (("runs", "follow", "nothing"), "no meta-training run 'nothing'"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(run_command, tmp_path, arguments, words):
    (tmp_path / "wrong.toml").write_text(TOML.replace("[unroll]", "[unrol]"))
    result = run_command(*arguments)
    assert (result.code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert words in line


def test_metatrain_needs_nothing_of_the_server(run_command, monkeypatch):
    monkeypatch.setattr(cli, "entry_points", lambda group: ())
    help_ = run_command("metatrain", "--help").stdout
    assert "--detach" in help_
    assert "--local" not in help_
    assert run_command("metatrain", "recipe.toml").code == 0
