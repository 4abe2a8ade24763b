"""Do a session's journals still give what they once gave? Every step is computed again, from snapshot to snapshot."""

from dataclasses import dataclass
from pathlib import Path

from optserve_server.sessions.awake import Awake
from optserve_server.sessions.description import Description
from optserve_server.sessions.pages import Arena, StateMemory
from optserve_server.sessions.plan import ServedVersion, configured
from optserve_server.sessions.recovery import replay_leg
from optserve_server.sessions.snapshotting import put_snapshot, take_snapshot
from optserve_server.sessions.storage import snapshots
from optserve_server.sessions.storage.journal import Generation
from optserve_server.sessions.storage.lineage import Leg, Lineage, journal_path, snapshot_path
from optserve_server.sessions.storage.verification import Damage

_COMPARED = ("state", "gradients", "updates")  # the rest of a snapshot only tells, and norms may differ in a last digit
_MEND = (
    "the session goes on from its snapshots; replay on the machine that it ran on, and report it if that differs too"
)


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of it: so many steps were computed again, with the kernel that computed them first or with another.

    With another kernel other bits are no damage.
    """

    replayed_steps: int
    same_kernel: bool
    damage: tuple[Damage, ...]


def replay_all(place: Path, description: Description, version: ServedVersion) -> Replay:
    """Compute all steps that are retained again; the files are those of a sound session.

    Raises:
        Damaged: they are not.
        FileNotFoundError: a server has removed one meanwhile.
    """
    chain = Lineage(place).chain()[::-1]
    awake = _awake(description, version)
    oldest = snapshot_path(place, chain[0].number)
    if oldest.exists():
        put_snapshot(awake, snapshots.read(oldest))
    before = awake.next_step
    damage: list[Damage] = []
    for generation, younger in zip(chain, [*chain[1:], None], strict=True):
        damage += _replay_generation(awake, place, generation, younger)
    same_kernel = all(generation.kernel == awake.kernel for generation in chain)
    return Replay(awake.next_step - before, same_kernel, tuple(damage) if same_kernel else ())


def _replay_generation(awake: Awake, place: Path, generation: Generation, younger: Generation | None) -> list[Damage]:
    """Replay it to where the younger one begins; go on from the snapshot that is there, if there is one."""
    until = None if younger is None else younger.first_step
    path = journal_path(place, generation.number)
    awake.is_approximate = False
    replay_leg(awake, path, Leg(generation, until), destination=until)
    damage = []
    if awake.is_approximate:
        damage.append(Damage(path.name, "its steps give other updates than they once gave", _MEND))
    if younger is not None and (kept := snapshot_path(place, younger.number)).exists():
        snapshot, again = snapshots.read(kept), take_snapshot(generation.session, awake)
        if any(snapshot.sections.get(name) != again.sections.get(name) for name in _COMPARED):
            damage.append(Damage(kept.name, f"generation {generation.number} does not lead to this state", _MEND))
        put_snapshot(awake, snapshot)
    return damage


def _awake(description: Description, version: ServedVersion) -> Awake:
    plan = description.plan
    optimizer = configured(version.optimizer, plan.hyperparameters)
    memory = StateMemory(1 << 62)
    arena = Arena(len(optimizer.features), memory)
    return Awake(version, optimizer, description.layout, plan, arena, memory)
