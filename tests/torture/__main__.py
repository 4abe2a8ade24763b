"""python -m tests.torture --kills 200"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.torture import __doc__ as description
from tests.torture.loops import KINDS, Loop
from tests.torture.servers import Server


def main() -> int:
    """The exit code: 0 where no reply can be told from those of a server that nobody disturbed."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="optserve-torture-") as directory:
        tortured, recoveries, early = _torture(Path(directory) / "tortured", options)
        problems = [loop.failure for loop in tortured if loop.failure]
        if not problems:
            problems = _compare(tortured, Path(directory) / "undisturbed")
    operations = Counter(name for loop in tortured for name, _ in loop.trace)
    print(f"{options.kills} kills, {early} of them before the server was ready; {len(tortured)} loops")
    print("operations:", ", ".join(f"{count:,} {name}" for name, count in operations.most_common()))
    print(f"replies that were lost and asked for again: {sum(loop.lost for loop in tortured):,}")
    print(
        f"from start to the first reply: {statistics.median(recoveries):.2f} s in the median, "
        f"{max(recoveries):.2f} s at most"
    )
    print("\n".join(problems) or "every reply has the bytes that an undisturbed server gives")
    return 1 if problems else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=description)
    parser.add_argument("--kills", type=int, default=200, help="at least 1")
    parser.add_argument("--loops", type=int, default=len(KINDS))
    parser.add_argument("--seconds", type=float, default=0.3, help="that a server lives at most, once it is ready")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of what the loops do")
    return parser.parse_args()


def _torture(directory: Path, options: argparse.Namespace) -> tuple[list[Loop], list[float], int]:
    """The loops, the seconds from each start to the first reply, and how many kills came before that."""
    directory.mkdir()
    server = Server(directory)
    moments = random.Random(options.seed)
    loops = [Loop(server.url, options.seed * 1000 + number) for number in range(options.loops)]
    server.start()
    server.wait_until_ready()
    for loop in loops:
        loop.start()
    recoveries: list[float] = []
    early = 0
    for kill in range(options.kills):
        started = time.monotonic()
        if kill and moments.random() < 0.15:
            time.sleep(moments.uniform(0, 0.5))  # while it starts and recovers
            early += 1
        else:
            recoveries.append(_first_reply(server, loops, started))
            time.sleep(moments.uniform(0, options.seconds))
        if any(loop.failure for loop in loops):
            break
        server.kill()
        server.start()
        _tell(kill + 1, options.kills, loops)
    server.wait_until_ready()
    for loop in loops:
        loop.over.set()
    for loop in loops:
        loop.join()
    server.stop()
    return loops, recoveries, early


def _first_reply(server: Server, loops: list[Loop], since: float) -> float:
    while not any(loop.answered > since or loop.failure for loop in loops):
        server.require_alive(since)
        time.sleep(0.002)
    return time.monotonic() - since


def _compare(tortured: list[Loop], directory: Path) -> list[str]:
    """Run the same loops undisturbed; what differs."""
    directory.mkdir()
    server = Server(directory)
    server.start()
    server.wait_until_ready()
    undisturbed = [Loop(server.url, loop._seed, len(loop.trace)) for loop in tortured]
    for loop in undisturbed:
        loop.start()
    for loop in undisturbed:
        loop.join()
    server.stop()
    return [problem for pair in zip(tortured, undisturbed, strict=True) if (problem := _difference(*pair))]


def _difference(tortured: Loop, undisturbed: Loop) -> str | None:
    if undisturbed.failure:
        return f"undisturbed: {undisturbed.failure}"
    for number, (found, expected) in enumerate(zip(tortured.trace, undisturbed.trace, strict=True)):
        if found != expected:
            return f"{tortured.kind}: operation {number}: {found}, undisturbed {expected}"
    return None


def _tell(kills: int, of: int, loops: list[Loop]) -> None:
    if sys.stderr.isatty() or kills % 50 == 0:
        steps, lost = sum(loop.steps for loop in loops), sum(loop.lost for loop in loops)
        print(f"\r{kills} of {of} kills, {steps:,} steps, {lost:,} replies lost", end="\n", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
