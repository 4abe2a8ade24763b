"""`import optserve`, which every training loop pays, against a bound of 0.2 s and a bare interpreter."""

import subprocess
import sys

from benchmarks.measuring import Figure, in_turn, write

BOUND_SECONDS = 0.2


def main() -> None:
    def python(code: str) -> object:
        return subprocess.run([sys.executable, "-c", code], check=True)

    ours, bare = in_turn(lambda: python("import optserve"), lambda: python("pass"), rounds=15, warm_up=2)
    write("imports", [Figure("import optserve", "import", "bound", ours - bare, BOUND_SECONDS, at_most=1.0)])


if __name__ == "__main__":
    main()
