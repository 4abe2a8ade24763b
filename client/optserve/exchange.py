"""The client's operations without their input and output (https://sans-io.readthedocs.io).

An operation is a generator: it yields requests and is sent their responses; where a connection is lost, ConnectionLost
is thrown into it. So each public method is written once, and the decorator `exchange` makes it a plain method of the
classes that block and a coroutine method of those that are awaited:

    class Shared(Resource):
        @exchange
        def digest(self) -> Exchange[Digest]:
            response = yield from self._call("GET", "/digest")
            return decode(Digest, response)

    class Session(Blocking, Shared): ...        # def digest(self) -> Digest
    class AsyncSession(Awaited, Shared): ...    # async def digest(self) -> Digest
"""

import functools
import inspect
from collections.abc import Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, cast, get_args, overload

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """What to send.

    `path` comes below the API's prefix and carries the query. `repeatable` says that the server does no more when it
    receives the request twice. `delay` is how many seconds to wait before sending it. `room` is memory for the content
    of a success that is exactly as long; after anything else it may hold a part of something.
    """

    method: str
    path: str
    content: bytes | memoryview = b""
    headers: Mapping[str, str] | None = None
    repeatable: bool = True
    delay: float = 0.0
    room: memoryview | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """What came back. `headers` finds its keys whatever their case.

    `content` is the caller's own, to write to; it is empty where the request's room has it (`is_in_room`).
    """

    status: int
    headers: Mapping[str, str]
    content: bytearray
    is_in_room: bool = False


Exchange: TypeAlias = Generator[Request, Response, T]
"""An operation that ends in a T."""


class ConnectionLost(Exception):
    """No response came. `sent` is False where the server cannot have seen the request."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


class Sender(Protocol):
    """A blocking connection: sends a request, waits for the response, or raises ConnectionLost."""

    def send(self, request: Request, /) -> Response:
        """Send and wait."""
        ...


class AsyncSender(Protocol):
    """The same, awaited."""

    async def send(self, request: Request, /) -> Response:
        """Send and wait."""
        ...


def run(operation: Exchange[T], sender: Sender) -> T:
    """Carry an operation out, blocking."""
    try:
        request = next(operation)
        while True:
            try:
                response = sender.send(request)
            except ConnectionLost as lost:
                request = operation.throw(lost)
            else:
                request = operation.send(response)
    except StopIteration as end:
        return cast(T, end.value)


async def run_async(operation: Exchange[T], sender: AsyncSender) -> T:
    """Carry an operation out, awaiting."""
    try:
        request = next(operation)
        while True:
            try:
                response = await sender.send(request)
            except ConnectionLost as lost:
                request = operation.throw(lost)
            else:
                request = operation.send(response)
    except StopIteration as end:
        return cast(T, end.value)


class Blocking:
    """Base of the classes whose operations block."""

    _connection: Sender


class Awaited:
    """Base of the classes whose operations are awaited."""

    _connection: AsyncSender


class Operation(Generic[P, T]):
    """A method written once as a generator; what it is depends on whether its class is Blocking or Awaited."""

    def __init__(self, generator: Callable[Concatenate[Any, P], Exchange[T]]) -> None:
        self.__doc__ = generator.__doc__
        self._blocking = _described(_blocking(generator), generator)
        self._awaited = _described(_awaited(generator), generator)

    @overload
    def __get__(self, instance: None, owner: type) -> Callable[..., Any]: ...
    @overload
    def __get__(self, instance: Blocking, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, instance: Awaited, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        """The function of the class, or the method of the instance."""
        function = self._awaited if issubclass(owner, Awaited) else self._blocking
        return function if instance is None else MethodType(function, instance)


def exchange(generator: Callable[Concatenate[Any, P], Exchange[T]]) -> Operation[P, T]:
    """Make a method of a generator; see the module's description."""
    return Operation(generator)


def _blocking(generator: Callable[..., Exchange[T]]) -> Callable[..., T]:
    @functools.wraps(generator)
    def method(self: Blocking, *args: Any, **kwargs: Any) -> T:
        return run(generator(self, *args, **kwargs), self._connection)

    return method


def _awaited(generator: Callable[..., Exchange[T]]) -> Callable[..., Coroutine[Any, Any, T]]:
    @functools.wraps(generator)
    async def method(self: Awaited, *args: Any, **kwargs: Any) -> T:
        return await run_async(generator(self, *args, **kwargs), self._connection)

    return method


def _described(method: Callable[..., Any], generator: Callable[..., Any]) -> Callable[..., Any]:
    """Let `inspect.signature` and `help` show what the method returns, not the generator behind it."""
    signature = inspect.signature(generator)
    result = get_args(signature.return_annotation)[2]
    described = cast(Any, method)
    described.__signature__ = signature.replace(return_annotation=result)
    described.__annotations__ = {**generator.__annotations__, "return": result}
    del described.__wrapped__
    return method
