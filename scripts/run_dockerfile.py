"""Carries the Dockerfile's steps out without Docker, in a scratch directory, and starts the server that comes of it.

    python scripts/run_dockerfile.py [DIRECTORY]

What differs from the image: absolute paths lie below the scratch directory; the Python is this one; packages that this
environment has in the pinned versions are taken from it rather than downloaded; and system users are not made.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).resolve().parent.parent
ABSOLUTE = re.compile(r"(?<!\w)/(?=(?:opt|src|data)\b)")  # where the Dockerfile writes
PATIENCE = 120


class Image:
    """The scratch directory, and what the steps so far have set."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.work = directory
        self.environment: dict[str, str] = {}
        self.user = "root"
        self.command: list[str] = []
        self.healthcheck: list[str] = []
        self._steps: dict[str, Callable[[str], None]] = {
            "FROM": self._from,
            "WORKDIR": self._workdir,
            "RUN": self._run,
            "COPY": self._copy,
            "ENV": self._env,
            "USER": self._user,
            "CMD": self._cmd,
            "HEALTHCHECK": self._healthcheck,
        }

    def carry_out(self, instruction: str, value: str) -> None:
        """One step. ARG, VOLUME, EXPOSE and comments do nothing here."""
        if instruction not in ("COMMENT", "ARG", "VOLUME", "EXPOSE"):
            print(f"{instruction} {value}", flush=True)
            self._steps[instruction](value)

    def path(self, text: str) -> str:
        """The same text, its absolute paths below the scratch directory."""
        return ABSOLUTE.sub(f"{self.directory}/", text)

    def _from(self, value: str) -> None:
        if not value.startswith("python:3."):
            raise SystemExit(f"FROM {value}: this script knows images of Python alone")
        self.work, self.environment, self.user = self.directory, {}, "root"

    def _workdir(self, value: str) -> None:
        self.work = Path(self.path(value))
        self.work.mkdir(parents=True, exist_ok=True)

    def _run(self, value: str) -> None:
        if value.startswith("useradd "):
            home = shlex.split(value)[shlex.split(value).index("--home-dir") + 1]
            Path(self.path(home)).mkdir()
            return
        words = shlex.split(self.path(value))
        if words[0] == "python":
            words[0] = sys.executable
        self._execute(words)
        if words[1:3] == ["-m", "venv"]:
            self._lend_packages(Path(words[3]))

    def _copy(self, value: str) -> None:
        words = value.split()
        if words[0].startswith("--from="):
            if words[1] != words[2]:
                raise SystemExit(f"COPY {value}: a virtual environment works only where it was made")
            return
        *sources, target = words
        for source in sources:
            if source not in sent_to_docker():
                raise SystemExit(f"COPY {value}: .dockerignore keeps {source} from Docker")
            place = self.work / target if target != "./" else self.work / source
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, place)

    def _env(self, value: str) -> None:
        for word in shlex.split(self.path(value)):
            name, _, setting = word.partition("=")
            self.environment[name] = setting.replace("$PATH", os.environ["PATH"])

    def _user(self, value: str) -> None:
        self.user = value

    def _cmd(self, value: str) -> None:
        self.command = json.loads(value)

    def _healthcheck(self, value: str) -> None:
        self.healthcheck = json.loads(value.partition("CMD ")[2])

    def _execute(self, words: list[str]) -> None:
        environment = {name: setting for name, setting in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run(words, cwd=self.work, env={**environment, **self.environment}, check=True)

    def _lend_packages(self, venv: Path) -> None:
        # A path in a .pth is searched last, so what pip installs goes before what is lent.
        [packages] = venv.glob("lib/python*/site-packages")
        (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")


def sent_to_docker() -> set[str]:
    """What .dockerignore lets through, which shuts everything out first."""
    lines = (ROOT / ".dockerignore").read_text().split()
    if lines[0] != "*":
        raise SystemExit(".dockerignore must begin with *")
    return {line.removeprefix("!") for line in lines if line.startswith("!")}


def serve(image: Image) -> None:
    """Start what the image would start, wait until it is healthy, and stop it as Docker does."""
    if image.user == "root":
        raise SystemExit("the image would run as root: set USER")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    inherited = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    environment = {**inherited, **image.environment, "OPTSERVE_INSECURE": "true", "OPTSERVE_PORT": port}
    program = shutil.which(image.command[0], path=environment["PATH"])
    if program is None or not Path(program).is_relative_to(image.directory):
        raise SystemExit(f"the image has no {image.command[0]}: {program}")
    print(f"CMD as {image.command}", flush=True)
    with subprocess.Popen(image.command, cwd=image.work, env=environment, executable=program) as server:
        try:
            wait_until_healthy(image, environment, server)
            server.send_signal(signal.SIGTERM)
            status = server.wait(timeout=PATIENCE)
        finally:
            with suppress(ProcessLookupError):
                server.kill()
    if status:
        raise SystemExit(f"the server ended with status {status}")


def wait_until_healthy(image: Image, environment: dict[str, str], server: "subprocess.Popen[bytes]") -> None:
    """Ask as Docker does."""
    deadline = time.monotonic() + PATIENCE
    while subprocess.run(image.healthcheck, env=environment, stderr=subprocess.DEVNULL, check=False).returncode:
        if server.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("the server does not become healthy")
        time.sleep(0.5)
    print("healthy", flush=True)


def main(directory: Path) -> None:
    """Everything, from the first step to the server's end."""
    image = Image(directory)
    for step in DockerfileParser(str(ROOT)).structure:
        image.carry_out(step["instruction"], step["value"])
    serve(image)


if __name__ == "__main__":
    if sys.argv[1:]:
        main(Path(sys.argv[1]).resolve())
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
