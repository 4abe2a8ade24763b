"""The command line, as it is typed."""

import sys
from types import SimpleNamespace

import pytest

from optserve.cli import main


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """Makes what runs `optserve GROUP …` in an empty directory: its exit code, and what it wrote."""

    def typed(group, columns):
        monkeypatch.chdir(tmp_path)
        for name, value in {"COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "dumb"}.items():
            monkeypatch.setenv(name, value)

        def run(*arguments):
            monkeypatch.setattr(sys, "argv", ["optserve", group, *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
            written = capsys.readouterr()
            return SimpleNamespace(code=ended.value.code, stdout=written.out, stderr=written.err)

        return run

    return typed
