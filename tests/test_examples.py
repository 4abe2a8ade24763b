"""The examples run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("example", ["wine.py", "wine_jax.py"])
def test_wine_learns_data_that_nothing_was_meta_trained_on(server, example) -> None:
    command = [sys.executable, "-W", "error", EXAMPLES / example]
    environment = {**os.environ, "OPTSERVE_URL": server.url}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", result.stdout)]
    assert len(losses) == 10
    assert losses[-1] < 0.01
    assert float(re.findall(r"(\S+)% of", result.stdout)[0]) > 90
