"""A session: one training loop's hidden state under one optimizer version.

updates = session.step({"w": gradient_of_w, "b": gradient_of_b}, loss=0.31)
w += updates["w"]
"""

from collections.abc import Collection, Mapping
from typing import Any, Generic, Self, SupportsFloat, TypeVar, cast
from urllib.parse import quote, urlencode

from numpy.typing import NDArray

from optserve.decoding import decode
from optserve.errors import ReplyInvalid, SessionExpired, SessionNotFound
from optserve.exchange import Awaited, Blocking, Exchange, exchange
from optserve.layout import VALUES, Float32, Layout
from optserve.resource import Resource, segment, to_json
from optserve.wire import HEADER_GUARD
from optserve.wire.bodies import (
    CheckpointInfo,
    Digest,
    ForkRequest,
    History,
    HistoryItem,
    RestoreRequest,
    SessionInfo,
    SessionPatch,
)
from optserve.wire.gradients import JSON, OCTET_STREAM, SAFETENSORS
from optserve.wire.guard import GuardEvent, GuardNote, parse_notes

_BINARY = {"Content-Type": OCTET_STREAM}
_SAFETENSORS = {"Content-Type": SAFETENSORS}
_JSON = {"Content-Type": JSON}


class Updates(dict[str, Float32]):
    """The updates g_t by parameter name, and in `guard` what the session's update guard did, mostly nothing."""

    guard: list[GuardNote]


AnySession = TypeVar("AnySession", bound="SharedSession[Any]")


class SharedSession(Resource, Generic[AnySession]):
    """The operations of Session and AsyncSession.

    Attributes:
        info: the session as the server described it last.
        id: its identifier.
        optimizer: name, version and sha256 of its optimizer; they never change.
        parameters: the shape of each parameter by name, in declared order.
        coordinates: how many numbers they are.
        next_step: the only step it takes next.
        guard_notes: what the session's update guard did at the last step; empty where it did nothing, as it should be.
    """

    def __init__(self, connection: Any, info: SessionInfo) -> None:
        super().__init__(connection)
        self._path = f"/sessions/{segment(info.id)}"
        self._layout = Layout({p.name: tuple(p.shape) for p in info.parameters}, info.dtype)
        self.id = info.id
        self.optimizer = info.optimizer
        self.parameters = self._layout.shapes
        self.coordinates = info.coordinates
        self.guard_notes: list[GuardNote] = []
        self._update(info)

    def __repr__(self) -> str:
        optimizer = f"{self.optimizer.name}@{self.optimizer.version}"
        return f"<{type(self).__name__} {self.id}: {optimizer}, {self.coordinates} coordinates, step {self.next_step}>"

    def _update(self, info: SessionInfo) -> None:
        self.info = info
        self.next_step = info.next_step

    @exchange
    def step(
        self, gradients: Mapping[str, Any], loss: SupportsFloat | None = None, skip: Collection[str] = ()
    ) -> Exchange[Updates]:
        """Send the gradients ∇_t, receive the updates g_t: θ_{t+1} = θ_t + g_t.

        After a lost connection it is sent again and the server takes it once. After ConnectionFailed, call it again
        with the same gradients.

        Args:
            gradients: an array per parameter, in the parameters' shapes; converted to the session's dtype.
            loss: L(θ_t), for the session's history and for the optimizers that use it.
            skip: parameters without a gradient this time: their hidden state stands still, and no update comes back.

        Returns:
            The updates by parameter name, float32. They are views of one array, for the caller to write to. Their
            `guard` tells what the update guard did.

        Raises:
            GradientsInvalid: a wrong name or shape, a NaN or an infinity; the hidden state is untouched.
            StepConflict: the session is at another step; `refresh()` catches up.
        """
        skip = frozenset(skip)
        flat = yield from self._step(self._layout.flatten(gradients, skip), loss, skip)
        updates = Updates(self._layout.split(flat, skip))
        updates.guard = self.guard_notes
        return updates

    @exchange
    def step_flat(
        self, gradients: NDArray[Any], loss: SupportsFloat | None = None, skip: Collection[str] = ()
    ) -> Exchange[Float32]:
        """`step` for one array [coordinates]: the parameters flattened and concatenated in declared order.

        What `skip` names is left out of the array and of the answer. float32 is sent without a copy, and the answer is
        read to where it stays: an array that is the caller's, whose memory is used again once it, and every view of it,
        is gone. `guard_notes` tells what the update guard did.
        """
        skip = frozenset(skip)
        return (yield from self._step(self._layout.accept(gradients, skip), loss, skip))

    def _step(self, gradients: NDArray[Any], loss: SupportsFloat | None, skip: Collection[str]) -> Exchange[Float32]:
        step = self.next_step
        path = f"{self._path}/steps/{step}{_query(loss, skip)}"
        room = self._layout.room(skip)
        response = yield from self._call("POST", path, gradients.data, _BINARY, repeatable=True, room=room)
        if not response.is_in_room:
            raise ReplyInvalid(f"the reply has {len(response.content)} bytes, but the updates are {room.nbytes}")
        self.next_step = step + 1
        self.guard_notes = parse_notes(response.headers.get(HEADER_GUARD, ""))
        return self._layout.read(room)

    @exchange
    def refresh(self) -> Exchange[SessionInfo]:
        """Ask the server for the session's description; `next_step` follows it."""
        info = yield from self._get(SessionInfo, self._path)
        self._update(info)
        return info

    @exchange
    def update(
        self,
        *,
        hyperparameters: Mapping[str, Any] | None = None,
        label: str | None = None,
        ttl_seconds: float | None = None,
    ) -> Exchange[SessionInfo]:
        """Change hyperparameters of a hand-designed optimizer, the label or the time to live, between two steps.

        Raises:
            HyperparametersInvalid: an unknown name or a value out of its range.
        """
        changes = None if hyperparameters is None else dict(hyperparameters)
        info = yield from self._send(
            SessionInfo, "PATCH", self._path, SessionPatch(changes, label=label, ttl_seconds=ttl_seconds)
        )
        self._update(info)
        return info

    @exchange
    def set_parameters(self, parameters: Mapping[str, Any]) -> Exchange[None]:
        """Send θ, an array per parameter, for the optimizers that use it; the server then follows the updates."""
        flat = self._layout.flatten(parameters, role=VALUES)
        yield from self._call("PUT", f"{self._path}/parameters", flat.data, _BINARY)

    @exchange
    def save(self, checkpoint: str) -> Exchange[CheckpointInfo]:
        """Keep h_t on the server under a name; an earlier checkpoint of that name is replaced."""
        response = yield from self._call("PUT", f"{self._path}/checkpoints/{segment(checkpoint)}")
        return decode(CheckpointInfo, response.content)

    @exchange
    def checkpoints(self) -> Exchange[list[CheckpointInfo]]:
        """The session's checkpoints."""
        return (yield from self._list(CheckpointInfo, f"{self._path}/checkpoints"))

    @exchange
    def restore(self, checkpoint: str) -> Exchange[SessionInfo]:
        """Go back to a checkpoint; `next_step` goes back too.

        Raises:
            CheckpointNotFound: nothing was saved under that name.
        """
        return (yield from self._go_back(RestoreRequest(checkpoint=checkpoint)))

    @exchange
    def rewind(self, step: int) -> Exchange[SessionInfo]:
        """Undo all steps from `step` on, without a checkpoint made beforehand: `step` comes next again.

        h_t goes back; hyperparameters, label and time to live stay as they are now.

        Raises:
            StepNotRetained: the server keeps at least the last 50 steps, and this is none of those it has.
        """
        return (yield from self._go_back(RestoreRequest(step=step)))

    def _go_back(self, request: RestoreRequest) -> Exchange[SessionInfo]:
        response = yield from self._call("POST", f"{self._path}/restore", to_json(request), _JSON, repeatable=True)
        info = decode(SessionInfo, response.content)
        self._update(info)
        return info

    @exchange
    def fork(self, step: int | None = None) -> Exchange[AnySession]:
        """A second session with a copy of h_t, as it was when `step` came next, or as it is now.

        Raises:
            StepNotRetained: the server keeps at least the last 50 steps, and this is none of those it has.
            StateTooLarge: the server has no room for another hidden state.
        """
        info = yield from self._create(SessionInfo, f"{self._path}/fork", to_json(ForkRequest(step)))
        return cast(AnySession, type(self)(self._connection, info))

    @exchange
    def history(self) -> Exchange[list[HistoryItem]]:
        """Loss and norms of the steps taken, the oldest first; thinned evenly to at most 2,000, with the last."""
        return (yield from self._get(History, f"{self._path}/history")).items

    @exchange
    def guard_events(self) -> Exchange[list[GuardEvent]]:
        """When the update guard put parameters under its fallback, and back; the newest 200, the oldest first."""
        return (yield from self._get(History, f"{self._path}/history")).guard_events

    @exchange
    def state(self) -> Exchange[bytes]:
        """The whole of h_t as the bytes of a safetensors file; equal states give equal bytes."""
        response = yield from self._call("GET", f"{self._path}/state")
        return bytes(response.content)

    @exchange
    def load_state(self, state: bytes) -> Exchange[SessionInfo]:
        """Put the `state()` of a session of the same optimizer version and parameters into this one.

        Raises:
            StateMismatch: it is of another version or of other parameters.
        """
        yield from self._call("PUT", f"{self._path}/state", state, _SAFETENSORS)
        info = yield from self._get(SessionInfo, self._path)
        self._update(info)
        return info

    @exchange
    def digest(self) -> Exchange[Digest]:
        """The next step and a sha256 of h_t: equal digests prove equal hidden states."""
        return (yield from self._get(Digest, f"{self._path}/digest"))

    @exchange
    def close(self) -> Exchange[None]:
        """Delete the session and its checkpoints; one that is gone or has expired is closed already."""
        try:
            yield from self._call("DELETE", self._path)
        except (SessionNotFound, SessionExpired):
            return


class Session(Blocking, SharedSession["Session"]):
    """A session of a `Client`. As a context manager it closes itself."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class AsyncSession(Awaited, SharedSession["AsyncSession"]):
    """A session of an `AsyncClient`: the same methods, awaited."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


def _query(loss: SupportsFloat | None, skip: Collection[str]) -> str:
    pairs = [] if loss is None else [("loss", repr(float(loss)))]
    pairs += [("skip", name) for name in sorted(skip)]
    return "?" + urlencode(pairs, quote_via=quote) if pairs else ""
