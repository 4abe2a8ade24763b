"""The wheel, built and installed away from the checkout: it brings its migrations and its recipes along."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]

USE = """
import sys
import optserve, optserve_server
from optserve_server.registry.bundled import register_bundled
from optserve_server.registry.database import Database
from optserve_server.resources import migrations_directory, recipes_directory

database = Database(sys.argv[1])
database.upgrade()
register_bundled(database)
print(database.current())
for place in (optserve.__file__, optserve_server.__file__, migrations_directory(), recipes_directory()):
    print(place)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    _pip("wheel", str(CHECKOUT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(directory))
    (path,) = directory.glob("optserve-*.whl")
    return path


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout + completed.stderr


def test_the_wheel_holds_what_it_should_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name for name in names if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in inside} == {"optserve", "optserve_server"}
    for path in (CHECKOUT / "recipes").glob("*.*"):
        assert f"optserve_server/recipes/{path.name}" in inside
    for path in (CHECKOUT / "alembic" / "versions").glob("*.py"):
        assert f"optserve_server/migrations/versions/{path.name}" in inside
    assert {"optserve/py.typed", "optserve_server/py.typed", "optserve_server/migrations/env.py"} <= inside
    assert not [name for name in inside if "__pycache__" in name or name.endswith((".pyc", ".db"))]
    assert "optserve_server/migrations/__init__.py" not in inside  # it would hide the library `alembic`
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_an_installed_wheel_migrates_and_registers_without_the_checkout(wheel, tmp_path):
    installed = tmp_path / "site"
    _pip("install", "--no-deps", "--target", str(installed), str(wheel))
    completed = subprocess.run(
        [sys.executable, "-c", USE, f"sqlite:///{tmp_path / 'registry.db'}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    revision, *places = completed.stdout.split("\n")[:5]
    assert revision == max(file.name for file in (CHECKOUT / "alembic" / "versions").glob("*.py"))[:4]
    assert all(Path(place).is_relative_to(installed) for place in places), places
