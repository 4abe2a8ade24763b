"""`optserve db`: what is wrong with a database is one line."""

import sqlite3
import subprocess
from pathlib import Path

import pytest


def db(command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([command, "db", *map(str, arguments)], capture_output=True, text=True, check=False)


def test_upgrade_and_current_agree(optserve_command: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'optserve.db'}"
    assert "no schema yet" in db(optserve_command, "current", "--database-url", url).stdout
    assert not (tmp_path / "new").exists()  # to look is not to make
    upgraded = db(optserve_command, "upgrade", "--database-url", url).stdout
    current = db(optserve_command, "current", "--database-url", url).stdout.strip()
    assert current.isdigit()
    assert f"revision {current}" in upgraded


@pytest.mark.parametrize("action", ["current", "upgrade"])
@pytest.mark.parametrize("kind", ["no database", "newer"])
def test_a_database_that_cannot_be_used_is_one_line(
    optserve_command: str, tmp_path: Path, action: str, kind: str
) -> None:
    file = tmp_path / "optserve.db"
    url = f"sqlite:///{file}"
    if kind == "no database":
        file.write_bytes(b"this is a text, and long enough not to be empty" * 100)
    else:
        assert db(optserve_command, "upgrade", "--database-url", url).returncode == 0
        with sqlite3.connect(file) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.close()
    result = db(optserve_command, action, "--database-url", url)
    if kind == "newer" and action == "current":
        assert result.stdout.strip() == "9999"
        return
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert "the database cannot be opened" in line
    assert ("newer optserve" in line) == (kind == "newer")
