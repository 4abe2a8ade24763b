"""The image and compose.yaml, as far as that goes without Docker."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_parse import DockerfileParser

from optserve_server.settings import ENVIRONMENT_PREFIX, Settings

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def ours(compose) -> dict[str, dict[str, Any]]:
    """The services of the image that is built here."""
    return {name: service for name, service in compose["services"].items() if "build" in service}


@pytest.mark.slow
def test_the_steps_of_the_dockerfile_make_a_server_that_is_healthy(tmp_path):
    script = [sys.executable, str(ROOT / "scripts" / "run_dockerfile.py"), str(tmp_path)]
    result = subprocess.run(script, capture_output=True, text=True, check=False, timeout=280)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert result.stdout.splitlines()[-1] == "healthy"


def test_there_are_a_database_a_server_and_a_worker(compose, ours):
    assert set(compose["services"]) == {"postgres", "server", "worker"}
    assert set(ours) == {"server", "worker"}
    for service in ours.values():
        assert (ROOT / service["build"] / "Dockerfile").is_file()


def test_what_a_service_names_is_there(compose):
    for name, service in compose["services"].items():
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in compose["services"][needed], name
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in compose["volumes"], (name, volume)
    assert all("healthcheck" in service for service in (compose["services"]["postgres"], compose["services"]["worker"]))


def test_every_variable_is_a_setting(ours):
    image = DockerfileParser(str(ROOT)).envs
    for name in [*image, *(variable for service in ours.values() for variable in service["environment"])]:
        if name.startswith(ENVIRONMENT_PREFIX):
            assert name.removeprefix(ENVIRONMENT_PREFIX).lower() in Settings.model_fields, name


def test_every_command_is_one(ours, optserve_command):
    for service in ours.values():
        program, command, *options = service["command"]
        assert program == "optserve"
        told = subprocess.run([optserve_command, command, "--help"], capture_output=True, text=True, check=True).stdout
        for option in options:
            assert not option.startswith("--") or option in told


def test_nothing_runs_with_more_rights_than_it_needs(compose, ours):
    for service in ours.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    for port in compose["services"]["server"]["ports"]:
        assert port.startswith("127.0.0.1:")


def test_no_password_is_written_down(compose):
    secrets = [
        value
        for service in compose["services"].values()
        for name, value in service["environment"].items()
        if "PASSWORD" in name
    ]
    assert len(secrets) == 3
    for value in secrets:
        assert re.fullmatch(r"\$\{POSTGRES_PASSWORD:\?.+\}", value)
