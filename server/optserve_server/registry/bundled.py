"""The optimizers that come with the package, registered when a server starts."""

import dataclasses
import inspect

from optserve_server.optimizers import HAND_DESIGNED, build, weights
from optserve_server.registry import aliases, optimizers, weight_files
from optserve_server.registry.database import Database
from optserve_server.registry.errors import WeightsInvalid
from optserve_server.registry.references import CHAMPION
from optserve_server.registry.weight_files import WeightsFile
from optserve_server.resources import recipes_directory


def register_bundled(database: Database) -> None:
    """Make every bundled optimizer a version, once: whoever starts again, or at the same time, adds nothing.

    A bundled file that has changed becomes its optimizer's next version. A learned optimizer's first version is also
    its first `champion`; later ones leave the champion alone.

    Raises:
        WeightsInvalid: a bundled file is damaged; the message names it.
    """
    for name, file in [*_learned(), *_hand_designed()]:
        _register(database, name, file)


def _register(database: Database, name: str, file: WeightsFile) -> None:
    with database.session(write=True) as db_session:
        optimizer = optimizers.claim_name(db_session, name)
        if optimizers.find_version_by_content(db_session, name, file.sha256) is not None:
            return
        version = optimizers.add_version(db_session, name, file)
        if file.optimizer.learned and version.number == 1:
            aliases.point(db_session, optimizer, CHAMPION, version, moved_by=aliases.SERVER)


def _learned() -> list[tuple[str, WeightsFile]]:
    found = []
    for path in sorted(recipes_directory().glob("*.safetensors")):
        try:
            file = weight_files.read(path.read_bytes())
        except WeightsInvalid as error:
            raise WeightsInvalid(f"{path} is damaged; install optserve again. {error}") from error
        found.append((file.name or path.stem, file))
    return found


def _hand_designed() -> list[tuple[str, WeightsFile]]:
    found = []
    for kind, optimizer_class in HAND_DESIGNED.items():
        description = (inspect.getdoc(optimizer_class) or "").partition("\n")[0]
        file = weight_files.read(weights.encode(build({"kind": kind}), {}))
        found.append((kind, dataclasses.replace(file, description=description)))
    return found
