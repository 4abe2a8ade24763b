"""Files that travel with the package: database migrations and the bundled optimizers.

An installed wheel carries them inside the package; in a checkout they stand at the top level.
"""

from pathlib import Path

_PACKAGE = Path(__file__).parent
_CHECKOUT = _PACKAGE.parents[1]


def checkout_directory() -> Path:
    """Where the checkout is, if this package is one's; an installed package has something else there."""
    return _CHECKOUT


def migrations_directory() -> Path:
    """The Alembic scripts: `env.py` and `versions/`.

    Raises:
        FileNotFoundError: they are missing from the installation.
    """
    return _first_directory(_PACKAGE / "migrations", _CHECKOUT / "alembic")


def recipes_directory() -> Path:
    """The bundled optimizers: each a recipe `<name>.toml` and the `<name>.safetensors` it produced.

    Raises:
        FileNotFoundError: they are missing from the installation.
    """
    return _first_directory(_PACKAGE / "recipes", _CHECKOUT / "recipes")


def _first_directory(*candidates: Path) -> Path:
    for directory in candidates:
        if directory.is_dir():
            return directory
    places = " nor ".join(str(directory) for directory in candidates)
    raise FileNotFoundError(f"there is neither {places}; this installation is incomplete, install optserve again")
