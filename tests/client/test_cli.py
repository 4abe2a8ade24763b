"""The command line against the running server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import optserve
from optserve.wire import tensors


@pytest.fixture
def run(server, run_at):
    """Runs `optserve …` against the shared server."""
    return run_at(server.url)


def ok(result):
    assert (result.code, result.stderr) == (0, "")
    return result.stdout


def failed(result):
    assert (result.code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    return line


def test_the_installed_script():
    script = Path(sys.executable).with_name("optserve")
    assert subprocess.check_output([script, "--version"], text=True).strip() == optserve.__version__


def test_help_teaches_the_commands(run):
    text = ok(run("--help"))
    for word in ("optimizers", "tasks", "serve", "OPTSERVE_URL"):
        assert word in text
    assert "NAME@ALIAS" in ok(run("optimizers", "promote", "--help"))


def test_sessions(run, client):
    with client.sessions.create("adam", {"w": (2, 3)}, label="a loop of mine") as session:
        session.step({"w": [[0.0] * 3] * 2})
        text = ok(run("sessions", "list"))
        (listed,) = [one for one in json.loads(ok(run("sessions", "list", "--json"))) if one["id"] == session.id]
    assert (listed["next_step"], listed["coordinates"]) == (1, 6)
    (row,) = [line for line in text.splitlines() if line.startswith(session.id)]
    assert row.split()[1:4] == ["adam@1", "1", "6"]
    assert "a loop of mine" in row
    assert "verify" in ok(run("sessions", "--help"))


def test_list(run, client):
    text = ok(run("optimizers", "list"))
    listed = json.loads(ok(run("optimizers", "list", "--json")))
    assert [one["name"] for one in listed] == [one.name for one in client.optimizers.list()]
    for one in listed:
        assert one["name"] + (" *" if one["default"] else "") in text


def test_show(run):
    text = ok(run("optimizers", "show", "adam"))
    shown = json.loads(ok(run("optimizers", "show", "adam", "--json")))
    assert shown["hyperparameters"]["betas"] == [0.9, 0.999]
    assert "betas=[0.9, 0.999]" in text
    assert shown["versions"][0]["created_at"][:16].replace("T", " ") in text


def test_versions_are_rows_of_80_columns(run, client, tmp_path, monkeypatch):
    weights = another_version(client, tmp_path, "narrow").read_bytes()
    arrays, metadata = tensors.decode(weights)
    metrics = {"outer_step": 120000, "meta_loss": 0.123456789, "meta_loss_held_out": 1.23456789e-12}
    client.optimizers.import_weights("narrow", tensors.encode(arrays, {**metadata, "metrics": json.dumps(metrics)}))
    client.optimizers.promote("narrow", 1)
    monkeypatch.setenv("COLUMNS", "80")
    header, row = ok(run("optimizers", "show", "narrow")).splitlines()[-2:]
    assert header.split() == ["version", "outer", "step", "held-out", "loss", "created", "aliases"]
    assert row.split()[:3] == ["1", "120000", "1.235e-12"]
    assert row.endswith("best, champion, latest")
    assert len(row) <= 80


def test_show_one_version(run):
    text = ok(run("optimizers", "show", "rnnprop@latest"))
    shown = json.loads(ok(run("optimizers", "show", "rnnprop@1", "--json")))
    assert (shown["optimizer"], shown["version"]) == ("rnnprop", 1)
    assert text.startswith("rnnprop@1\n")
    assert shown["sha256"] in text


def test_usage(run):
    uses = json.loads(ok(run("usage", "--json")))
    assert (uses["key"], uses["limits"]["sessions"]) == ("anonymous", 10_000)
    text = ok(run("usage"))
    for word in ("anonymous", "bytes in flight", "10000", "requests so far"):
        assert word in text
    assert "There is no API key 'nobody'" in failed(run("usage", "nobody"))


def test_audit(run, client):
    client.optimizers.set_alias("sgd", "audited", 1)
    (entry,) = json.loads(ok(run("audit", "--limit", "1", "--json")))
    assert (entry["actor"], entry["action"], entry["details"]) == (
        "anonymous",
        "set_alias",
        {"version": 1, "force": False},
    )
    for word in ("anonymous", "set_alias", "done"):
        assert word in ok(run("audit", "--limit", "1"))


def test_tasks(run):
    listed = json.loads(ok(run("tasks", "--json")))
    text = ok(run("tasks"))
    assert "digits-mlp" in text
    assert "hidden_sizes" in text
    assert {"digits-mlp", "quadratic"} <= {one["family"] for one in listed}


def another_version(client, tmp_path, name):
    """The weights of `rnnprop` with another comment, so that they are another version."""
    arrays, metadata = tensors.decode(client.optimizers.weights("rnnprop", 1))
    file = tmp_path / "weights.safetensors"
    file.write_bytes(tensors.encode(arrays, {**metadata, "optimizer": name, "comment": name}))
    return file


def test_import_promote_and_export(run, client, tmp_path):
    file = another_version(client, tmp_path, "imported")
    assert "imported@1" in ok(run("optimizers", "import", str(file)))
    assert "second@1" in ok(run("optimizers", "import", str(file), "--name", "second"))
    promoted = ok(run("optimizers", "promote", "second@1"))
    assert promoted == "second@1 is now the champion of second, which had none before\n"
    assert ok(run("optimizers", "promote", "second@1")) == "second@1 is the champion of second already\n"
    assert client.optimizers.get("second").champion == 1
    for reference in ("second", "second@1", "second@champion", "second@latest"):
        ok(run("optimizers", "export", reference))
        assert (tmp_path / "second-1.safetensors").read_bytes() == file.read_bytes()
        (tmp_path / "second-1.safetensors").unlink()
    ok(run("optimizers", "export", "second", "-o", "here.safetensors"))
    assert (tmp_path / "here.safetensors").exists()


def test_diff(run, client, tmp_path):
    text = ok(run("optimizers", "diff", "lstm@1", "rnnprop@latest"))
    for word in ("lstm@1", "rnnprop@1", "architecture.kind", "recipe.tasks[0].family", "digits-mlp"):
        assert word in text
    told = json.loads(ok(run("optimizers", "diff", "lstm", "rnnprop", "--json")))
    assert {"path": "architecture.kind", "before": "lstm", "after": "rnnprop"} in told["items"]
    client.optimizers.import_weights("fourth", another_version(client, tmp_path, "fourth").read_bytes())
    same = ok(run("optimizers", "diff", "fourth", "rnnprop"))
    assert "fourth@1 and rnnprop@1 have the same" in same
    assert ["outer", "step", "200", "200"] in [line.split() for line in same.splitlines()]
    assert ["held-out", "loss", "0.02383", "0.02383"] in [line.split() for line in same.splitlines()]
    assert "no version 99" in failed(run("optimizers", "diff", "lstm", "lstm@99"))


def test_a_champion_gives_way_to_force(run, client, tmp_path):
    client.optimizers.import_weights("third", another_version(client, tmp_path, "third").read_bytes())
    client.optimizers.import_weights("third", client.optimizers.weights("rnnprop", 1))
    client.optimizers.promote("third", 1)
    refused = failed(run("optimizers", "promote", "third@2"))
    assert "third@1 is the champion" in refused
    assert "--force" in refused
    with pytest.raises(optserve.errors.PromotionUnproven):
        client.optimizers.promote("third", 2)
    assert "no evaluation 'nothing'" in failed(run("optimizers", "promote", "third@2", "--evaluation", "nothing"))
    assert "third@2 is now the champion of third, in place of third@1" in ok(
        run("optimizers", "promote", "third@2", "--force")
    )
    client.optimizers.promote("third", 1, force=True)
    assert [move.forced for move in client.optimizers.get("third").alias_history if move.alias == "champion"] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("optimizers", "show", "adamm"), "did you mean 'adam'"),
        (("optimizers", "promote", "adam@99"), "no version 99"),
        (("optimizers", "export", "adam@nobody"), "no alias 'nobody'"),
        (("optimizers", "promote", "adam@"), "no version after the @"),
        (("optimizers", "show", "adam@"), "no version after the @"),
        (("optimizers", "show", "adam@99"), "no version 99"),
        (("optimizers", "show", ""), "cannot be a name"),
        (("optimizers", "list", "--url", "http://[::1"), "is not a server's address"),
        (("optimizers", "list", "--api-key", "ключ"), "printable ASCII"),
        (("optimizers", "import", "missing.safetensors"), "missing.safetensors"),
        (("optimizers", "list", "--url", "127.0.0.1"), "write http://HOST:PORT"),
        (("tasks", "--url", "http://127.0.0.1:9"), "optserve serve"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(run, arguments, words):
    assert words in failed(run(*arguments))


def test_a_file_that_is_no_weights_file(run, tmp_path):
    (tmp_path / "text.safetensors").write_text("hello, this is no tensor")
    assert "not a safetensors file" in failed(run("optimizers", "import", "text.safetensors"))
    (tmp_path / "bare.safetensors").write_bytes(tensors.encode({}))
    assert "--name" in failed(run("optimizers", "import", "bare.safetensors"))
    assert "architecture" in failed(run("optimizers", "import", "bare.safetensors", "--name", "bare"))


def test_optimizers_from_python(client):
    """The rest of `client.optimizers`."""
    weights = client.optimizers.weights("rnnprop", 1)
    version = client.optimizers.import_weights("python", weights)
    assert (version.optimizer, version.version) == ("python", 1)
    assert client.optimizers.version("python", 1) == version
    assert [one.sha256 for one in client.optimizers.versions("python")] == [version.sha256]
    client.optimizers.set_alias("python", "mine", 1)
    assert client.sessions.create("python@mine", {"w": (1,)}).optimizer.version == 1
    client.optimizers.remove_alias("python", "mine")
    with pytest.raises(optserve.errors.AliasNotFound):
        client.optimizers.remove_alias("python", "mine")
    with pytest.raises(optserve.errors.AliasReserved):
        client.optimizers.set_alias("python", "latest", 1)
    with pytest.raises(optserve.errors.MalformedBody):
        client.optimizers.import_weights("python", b"hello")
    with pytest.raises(optserve.errors.WeightsInvalid, match="architecture"):
        client.optimizers.import_weights("python", tensors.encode({}))
