"""`optserve demo`, whole: the served optimizer beats tuned Adam and SGD on digits it was not meta-trained on."""

import re
import subprocess
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_learned_optimizer_ends_below_tuned_adam_and_sgd(optserve_command: str, tmp_path: Path) -> None:
    command = [optserve_command, "demo", "--seeds", "3", "--output", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"│ (hierarchical|Adam|SGD)[^│]*│([^│]*)│([^│]*)│([^│]*)│", result.stdout)
    final = {name: float(last) for name, _, _, last in rows}
    assert final["hierarchical"] < final["Adam"] < final["SGD"]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
