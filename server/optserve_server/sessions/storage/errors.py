"""What can be wrong with the files of sessions."""

from pathlib import Path


class Damaged(Exception):
    """A file of a session is not what was written; `step` is the first that cannot be read, None if that is unknown."""

    def __init__(self, path: Path, reason: str, step: int | None = None) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
        self.step = step


class DirectoryInUse(Exception):
    """Another server keeps its sessions in the directory."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"another server keeps its sessions in {path}; stop it, or give this one another directory (--data-dir)"
        )


class StepNotRetained(Exception):
    """The session cannot go back to that step: it is gone, or has not been reached."""

    def __init__(self, step: int, oldest: int, next_step: int) -> None:
        super().__init__(f"step {step} is not retained; the steps {oldest} to {next_step} are")
        self.step = step
        self.oldest = oldest
        self.next_step = next_step
