"""How everything here is measured: things in turn, A B A B …, and the ratio of their medians."""

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Figure:
    """One line of a benchmark: `subject` against `peer`, both in seconds (p50), and the most the ratio may be."""

    name: str
    subject: str
    peer: str
    subject_seconds: float
    peer_seconds: float
    at_most: float

    @property
    def ratio(self) -> float:
        return self.subject_seconds / self.peer_seconds

    def __str__(self) -> str:
        verdict = "ok" if self.ratio <= self.at_most else "MISSED"
        return (
            f"{self.name:42} {self.ratio:5.2f} ×  (at most {self.at_most:g}) {verdict:7}"
            f" {self.subject} {1000 * self.subject_seconds:.3f} ms, {self.peer} {1000 * self.peer_seconds:.3f} ms"
        )


@dataclass(frozen=True)
class Speed:
    """One line of a benchmark: how much `subject` and `peer` do in a second, and the least the ratio may be."""

    name: str
    subject: str
    peer: str
    unit: str
    subject_rate: float
    peer_rate: float
    at_least: float

    @property
    def ratio(self) -> float:
        return self.subject_rate / self.peer_rate

    def __str__(self) -> str:
        verdict = "ok" if self.ratio >= self.at_least else "MISSED"
        return (
            f"{self.name:42} {self.ratio:5.2f} ×  (at least {self.at_least:g}) {verdict:7}"
            f" {self.subject} {self.subject_rate:,.0f}, {self.peer} {self.peer_rate:,.0f} {self.unit} a second"
        )


def in_turn(*functions: Callable[[], object], rounds: int, warm_up: int) -> tuple[float, ...]:
    """The p50 of each in seconds, called in turn so that a change of the machine's speed meets all alike."""
    for _ in range(warm_up):
        for function in functions:
            function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return tuple(map(statistics.median, times))


def write(benchmark: str, figures: Sequence[Figure | Speed]) -> None:
    """Print the figures and keep them in results/BENCHMARK.json with what they were measured on."""
    for figure in figures:
        print(figure)
    content = {
        "machine": {"processor": processor(), "python": platform.python_version()},
        "figures": [{**asdict(figure), "ratio": figure.ratio} for figure in figures],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{benchmark}.json").write_text(json.dumps(content, indent=2) + "\n")


@contextmanager
def echo_server(port: int) -> Iterator[str]:
    """The peer: a FastAPI application under the same uvicorn that sends each body back."""
    command = [sys.executable, str(Path(__file__).parent / "peers" / "echo.py"), str(port)]
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}/echo"
    try:
        for _ in range(600):
            try:
                httpx.post(url, content=b"")
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait()


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
