"""`make reproduce`: meta-train, evaluate, and write docs/reproduction.md. Stopped and started again, it goes on."""

import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.measuring import processor
from benchmarks.reproduction import document
from benchmarks.reproduction.studies import HERE, STUDIES, carry_out
from benchmarks.reproduction.training import meta_train

DOCS = HERE.parents[1] / "docs"
WORKING_DIRECTORY = Path("reproduction")
PROCESSES = 2


def main() -> None:
    began = time.monotonic()
    WORKING_DIRECTORY.mkdir(exist_ok=True)
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        recipes = dict.fromkeys(study.recipe for study in STUDIES)
        training = {recipe: pool.submit(meta_train, HERE / recipe, WORKING_DIRECTORY) for recipe in recipes}
        evaluating = [pool.submit(carry_out, study, training[study.recipe].result()) for study in STUDIES]
        found = [(study, future.result()) for study, future in zip(STUDIES, evaluating, strict=True)]
    minutes = (time.monotonic() - began) / 60
    machine = f"Made in {minutes:.0f} minutes by {PROCESSES} processes on {os.cpu_count()} cores, {processor()}."
    document.write(found, machine, DOCS)
    print(f"{DOCS / 'reproduction.md'} is written")


if __name__ == "__main__":
    main()
