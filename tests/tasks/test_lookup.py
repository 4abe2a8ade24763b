"""Families by name and their parameters, and those that other packages bring by entry point."""

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optserve_server import tasks
from optserve_server.api.tasks import list_tasks

CHECKOUT = Path(__file__).parents[2]
EXAMPLE = CHECKOUT / "examples" / "sine-regression-family"


@pytest.mark.parametrize(
    ("family", "parameters", "message"),
    [
        ("digits-mpl", {}, "did you mean 'digits-mlp'"),
        ("digits-mlp", {"hidden_size": [3]}, "did you mean 'hidden_sizes'"),
        ("digits-mlp", {"hidden_sizes": [0]}, r"hidden_sizes\.0 is 0"),
        ("digits-mlp", {"activation": "gulu"}, "activation is 'gulu'.*'gelu'"),
        ("digits-mlp", {"label_noise": 1.5}, r"label_noise is 1\.5"),
        ("digits-conv", {"channels": [4, 4, 4, 4]}, "channels is"),
        ("tabular-mlp", {"data": "titanic"}, "data is 'titanic'.*'breast-cancer'"),
        ("classic-2d", {"function": "rosenbrok"}, "function is 'rosenbrok'.*'rosenbrock'"),
        ("noisy-quadratic", {"condition_number": 0.5}, r"condition_number is 0\.5"),
        ("noisy-quadratic", {"noise": float("nan")}, "noise is nan"),
        ("quadratic", {"dimension": 0}, "dimension is 0"),
    ],
)
def test_a_wrong_task_is_named(family: str, parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.build(family, parameters)


@pytest.mark.parametrize("name", tasks.families().usable)
def test_every_family_documents_its_parameters(name: str) -> None:
    schema = tasks.parameters_schema(name)
    assert schema["type"] == "object"
    assert schema["properties"]
    assert all("default" in parameter for parameter in schema["properties"].values())
    assert tasks.families().usable[name].description


@pytest.mark.parametrize("name", tasks.families().usable)
def test_every_family_and_parameter_is_in_the_documentation(name: str) -> None:
    text = (CHECKOUT / "docs" / "tasks.md").read_text()
    assert all(f"`{word}`" in text for word in [name, *tasks.parameters_schema(name)["properties"]])


# --- other packages ---------------------------------------------------------------------------------------------------

GOOD = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Family:
    name: ClassVar[str] = "mine"
    description: ClassVar[str] = "of my own"
    shapes = {}
    sample = initial = batch = loss = lambda self: None
    size: int = 3
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package of one module, as pip would leave it, into a directory of this test."""
    monkeypatch.syspath_prepend(tmp_path)
    tasks.families.cache_clear()

    def install(package: str, module: str, *, family: str = "mine", value: str = "Family") -> None:
        name = package.replace("-", "_")
        (tmp_path / f"{name}.py").write_text(module)
        information = tmp_path / f"{name}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[optserve.tasks]\n{family} = {name}:{value}\n")

    yield install
    tasks.families.cache_clear()


def test_a_package_brings_a_family(install: Install) -> None:
    install("package-good", GOOD)
    assert tasks.build("mine", {"size": 4}).size == 4  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="did you mean 'mine'"):
        tasks.build("mime", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("@dataclass(frozen=True)", "@dataclass"), r"Family is not frozen \(write @dataclass\(frozen=True\)\)"),
        (("@dataclass(frozen=True)", ""), "is not a dataclass"),
        (('"mine"', '"other"'), "Family has not `name: ClassVar.str. = 'mine'`"),
        (("    description", "    d"), "has no `description"),
        (("    shapes = {}", ""), "has no property `shapes`"),
        (("initial = batch = ", ""), "has no method `initial`, and has no method `batch`"),
        (("int = 3", "int"), "has the parameter `size` without a default"),
        (("int = 3", "type(len) = len"), "has parameters that JSON cannot say: .*builtin_function"),
        (
            ("from dataclasses", "import nothing_here\nfrom dataclasses"),
            "ModuleNotFoundError: No module named 'nothing",
        ),
        (("class Family", "class Familie"), "AttributeError: .*'Family'"),
    ],
)
def test_what_a_family_lacks_is_said(install: Install, change: tuple[str, str], message: str) -> None:
    package = f"package-{zlib.crc32(repr(change).encode())}"  # a module is imported once, so each has its own name
    install(package, GOOD.replace(*change))
    with pytest.raises(ValueError, match=f"'mine' of the package {package} .*cannot be used: .*{message}"):
        tasks.build("mine", {})
    assert "mine" not in tasks.families().usable
    assert tasks.build("quadratic", {})


def test_a_name_that_two_packages_claim_is_neithers(install: Install) -> None:
    install("package-one", GOOD)
    install("package-two", GOOD)
    with pytest.raises(ValueError, match="several task families 'mine', of the packages package-one and package-two;"):
        tasks.build("mine", {})


def test_a_name_of_ours_that_a_package_claims_is_not_guessed(install: Install) -> None:
    install("package-three", GOOD, family="quadratic")
    with pytest.raises(
        ValueError, match="several task families 'quadratic', of the packages package-three and optserve"
    ):
        tasks.build("quadratic", {})
    assert "quadratic" not in tasks.families().usable
    assert tasks.build("digits-mlp", {})


def test_the_listing_says_why_a_family_cannot_be_used(install: Install) -> None:
    install("package-four", GOOD.replace("loss = ", ""))
    items = {item.family: item for item in list_tasks().items}
    assert "of the package package-four" in items["mine"].description
    assert items["mine"].description.endswith("Family has no method `loss`")
    assert items["mine"].parameters_schema == {}
    assert items["quadratic"].parameters_schema["properties"]
    assert [item.family for item in list_tasks(limit=2, cursor="matrix-factorisation").items] == [
        "mine",
        "noisy-quadratic",
    ]


USE = """
import json
from optserve_server import tasks
from optserve_server.metatraining import recipes
from optserve_server.metatraining.memory import estimate_bytes
from optserve_server.metatraining.outer_loop import OuterLoop
recipe = recipes.parse({
    "name": "mine",
    "architecture": {"kind": "lstm", "hidden_size": 4, "layers": 1},
    "tasks": [{"family": "sine-regression", "parameters": {"hidden_size": 5, "batch_size": 4}}],
    "unroll": {"steps": 3},
    "meta_optimizer": {"outer_steps": 1, "tasks_per_outer_step": 2},
})
(progress,) = OuterLoop(recipe)
print(json.dumps([tasks.parameters_schema("sine-regression"), progress.meta_loss, estimate_bytes(recipe)]))
"""


def test_the_example_package_is_found_where_it_is_installed(tmp_path: Path) -> None:
    """Installed by pip, named in a recipe, and meta-trained on."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps"]
    run([*pip, "--no-build-isolation", "--target", str(tmp_path), str(EXAMPLE)])
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    schema, meta_loss, memory = json.loads(run([sys.executable, "-c", USE], PYTHONPATH=path))
    assert set(schema["properties"]) == {"hidden_size", "batch_size"}
    assert meta_loss > 0
    assert memory > 0


def run(command: list[str], **environment: str) -> str:
    completed = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout
