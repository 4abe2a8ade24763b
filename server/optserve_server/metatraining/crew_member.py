"""A process of the crew, as it is started."""

import os
import signal
import sys


def main() -> None:
    """Answer on the standard output until the standard input ends."""
    # Who stops a service or a container signals all of its processes. The one that asks finishes its outer step then,
    # and needs the answers.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody is left who would read the answer
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not come between

    from optserve_server.metatraining import crew  # takes seconds

    crew.serve(requests, answers)


if __name__ == "__main__":
    main()
