"""The README's examples are run as they stand."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("example", blocks("python"))
def test_a_python_example_runs(example: str, server) -> None:
    environment = {**os.environ, "OPTSERVE_URL": server.url}
    command = [sys.executable, "-W", "error", "-c", example]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    if "final loss" in example:
        assert float(result.stdout.split()[-1]) < 0.1  # y = sin(x₁x₂) has a variance of 0.4


def test_the_curl_example_gives_what_it_says(server) -> None:
    (example,) = [block for block in blocks("sh") if "curl" in block]
    create, step = (shlex.split(line, comments=True) for line in re.findall(r"^curl.*?'$", example, re.DOTALL | re.M))
    session = post(server.url, create, {})
    assert session["next_step"] == 0
    reply = post(server.url, step, {"$ID": session["id"]})
    assert reply["step"] == 0
    assert [update < 0 for update in reply["updates"]["w"]] == [True, False, True]


def post(url: str, curl: list[str], variables: dict[str, str]) -> dict:
    address = next(word for word in curl if word.startswith("localhost:8000"))
    for name, value in variables.items():
        address = address.replace(name, value)
    header, body = curl[curl.index("-H") + 1], curl[curl.index("-d") + 1]
    key, _, value = header.partition(": ")
    response = httpx.post(address.replace("localhost:8000", url), content=body, headers={key: value})
    response.raise_for_status()
    return response.json()


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
