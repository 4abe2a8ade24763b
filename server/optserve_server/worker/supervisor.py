"""A server's own workers: processes that are started again when they die, and that stop with the server."""

import math
import os
import subprocess
import sys
import threading
import time
from typing import Self

import structlog

from optserve_server import metrics
from optserve_server.settings import ENVIRONMENT_PREFIX

log = structlog.get_logger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 3.0
"""Before a worker is started again: doubled as long as workers die young."""

_YOUNG_SECONDS = 30.0
_STOP_SECONDS = 6.0
"""That a worker has for its present outer step, and to give its run back. One that needs longer is killed, and its
lease runs out; for a server is gone within ten seconds of being told to stop."""


class Supervisor:
    """Keeps so many `optserve worker` processes alive as long as the block lasts.

    Each has a pipe from this process as its standard input, and stops when that closes: then this process is gone,
    however it ended.
    """

    def __init__(self, workers: int, **settings: object) -> None:
        """The workers have these `settings`, by their names."""
        # Not as options, for everybody on the machine can read those, and a database's URL may hold a password.
        given = {ENVIRONMENT_PREFIX + name.upper(): str(value) for name, value in settings.items()}
        self._environment = {**os.environ, **given}
        self._stopping = threading.Event()
        self._deadline = math.inf
        self._changing = threading.Lock()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._threads = [threading.Thread(target=self._keep, args=(place,), daemon=True) for place in range(workers)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        metrics.WORKERS.set_function(self._count)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        for thread in self._threads:
            thread.join(max(0.0, self._deadline - time.monotonic()))
        for process in self._processes.values():
            process.kill()
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """Tell the workers to stop, without waiting for them. Safe in a signal's handler, and more than once."""
        with self._changing:
            if self._stopping.is_set():
                return
            self._stopping.set()
            self._deadline = time.monotonic() + _STOP_SECONDS
            for process in self._processes.values():
                process.terminate()

    def _keep(self, place: int) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            with self._changing:
                if self._stopping.is_set():
                    return
                process = self._processes[place] = self._start()
            began = time.monotonic()
            with process:  # which closes the pipe at its end
                process.wait()
            if self._stopping.is_set():
                return
            if time.monotonic() - began > _YOUNG_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            metrics.WORKER_DEATHS.inc()
            log.warning(
                "a worker has died and is started again", pid=process.pid, status=process.returncode, pause=pause
            )
            self._stopping.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _count(self) -> int:
        return sum(process.returncode is None for process in list(self._processes.values()))

    def _start(self) -> "subprocess.Popen[bytes]":
        # In a session of its own, for Ctrl-C in a terminal is meant for the server, which then stops its workers.
        return subprocess.Popen(
            [sys.executable, "-m", "optserve", "worker", "--stop-with-parent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=self._environment,
            start_new_session=True,
        )
