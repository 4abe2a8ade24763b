"""What evaluations on this machine have found, a file a cell, so that none is computed twice."""

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from optserve.wire.evaluations import Curves

_CURVES = TypeAdapter(Curves)


class Cache:
    """Curves by their fingerprints, in a folder. They may be removed at any time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of_user(cls) -> "Cache":
        """In `$XDG_CACHE_HOME/optserve/evaluations`, or in `~/.cache` where that is not set."""
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return cls(Path(caches) / "optserve" / "evaluations")

    def recall(self, fingerprint: str) -> Curves | None:
        """The curves of that fingerprint, if they are there."""
        file = self._file(fingerprint)
        return _CURVES.validate_json(file.read_bytes()) if file.exists() else None

    def keep(self, fingerprint: str, curves: Curves) -> None:
        """Write curves; whoever reads meanwhile sees all of them or none."""
        file = self._file(fingerprint)
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".new", delete=False) as written:
            json.dump(asdict(curves), written)
        Path(written.name).replace(file)

    def _file(self, fingerprint: str) -> Path:
        return self._folder / fingerprint[:2] / f"{fingerprint}.json"
