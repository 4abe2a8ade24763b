"""`make reproduce`: meta-train, evaluate, and write docs/reproduction.md. Stopped and started again, it goes on."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.measuring import processor
from benchmarks.reproduction import document
from benchmarks.reproduction.studies import HERE, STUDIES, Study, carry_out
from benchmarks.reproduction.training import meta_train
from optserve_server.optimizers import weights

DOCS = HERE.parents[1] / "docs"
WORKING_DIRECTORY = Path("reproduction")
PROCESSES = 2


def main() -> None:
    reproduce(STUDIES, HERE, WORKING_DIRECTORY, DOCS)
    print(f"{DOCS / 'reproduction.md'} is written")


def reproduce(studies: Sequence[Study], recipes: Path, working_directory: Path, docs: Path) -> None:
    """Meta-train, evaluate, and write the page into the folder `docs`."""
    working_directory.mkdir(exist_ok=True)
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        files = dict.fromkeys(study.recipe for study in studies)
        training = {file: pool.submit(meta_train, recipes / file, working_directory) for file in files}
        evaluating = [pool.submit(carry_out, study, training[study.recipe].result()) for study in studies]
        found = [(study, future.result()) for study, future in zip(studies, evaluating, strict=True)]
    document.write(found, _effort([future.result() for future in training.values()]), docs)


def _effort(weights_files: Sequence[Path]) -> str:
    seconds = [int(weights.decode(file.read_bytes())[2]["seconds"]) for file in weights_files]
    minutes = " and ".join(f"{one / 60:.0f}" for one in seconds)
    return f"Meta-training took {minutes} minutes of one core each: {processor()}, torch {torch.__version__}."


if __name__ == "__main__":
    main()
