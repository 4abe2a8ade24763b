"""What the tables are about, from subjects.toml."""

from pathlib import Path

from optserve_server.descriptions import DescriptionError, Table, parse, read_toml
from optserve_server.evaluation.distortions import UNDISTORTED, Distortion

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).parent / "subjects.toml"


class Served(Table):
    """A learned optimizer, and its weights file."""

    name: str
    weights: str


class Ablation(Table):
    """The first optimizer without something: other weights, or what it is told distorted."""

    what: str
    weights: str | None = None
    distortion: Distortion = UNDISTORTED


class Subjects(Table):
    """All of them; the first optimizer is what the ablations are of."""

    optimizers: tuple[Served, ...]
    ablations: tuple[Ablation, ...] = ()


def read(file: Path = FILE) -> Subjects:
    """The subjects of a file.

    Raises:
        DescriptionError: it cannot be read, or names what there is not.
    """
    return parse(Subjects, read_toml(file, DescriptionError), DescriptionError)


def weights(subjects: Subjects, root: Path = ROOT) -> dict[str, bytes]:
    """The weights files of the optimizers by name."""
    return {one.name: (root / one.weights).read_bytes() for one in subjects.optimizers}
