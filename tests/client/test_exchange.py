"""One generator, two methods: what the user sees of them."""

import asyncio
import inspect
from types import SimpleNamespace

import pytest

from optserve import AsyncSession, Session
from optserve.exchange import Awaited, Blocking, ConnectionLost, Exchange, Request, Response, exchange


class Shared:
    def __init__(self, connection):
        self._connection = connection

    @exchange
    def double(self, number: int, *, plus: int = 0) -> Exchange[int]:
        """Twice the number."""
        try:
            response = yield Request("GET", f"/{number}")
        except ConnectionLost:
            return -1
        return 2 * response.status + plus


class Plain(Blocking, Shared):
    pass


class Coroutine(Awaited, Shared):
    pass


def echo(request):
    if request.path == "/0":
        raise ConnectionLost("gone", sent=True)
    return Response(int(request.path[1:]), {}, bytearray())


async def echo_later(request):
    await asyncio.sleep(0)
    return echo(request)


def test_the_same_operation_blocks_or_is_awaited():
    assert Plain(SimpleNamespace(send=echo)).double(21, plus=1) == 43
    assert asyncio.run(Coroutine(SimpleNamespace(send=echo_later)).double(21, plus=1)) == 43


def test_a_lost_connection_reaches_the_operation():
    assert Plain(SimpleNamespace(send=echo)).double(0) == -1
    assert asyncio.run(Coroutine(SimpleNamespace(send=echo_later)).double(0)) == -1


def test_other_errors_of_the_connection_pass_through():
    def fail(request):
        raise MemoryError

    with pytest.raises(MemoryError):
        Plain(SimpleNamespace(send=fail)).double(1)


@pytest.mark.parametrize("owner", [Plain, Coroutine])
def test_signature_and_description_are_the_methods_own(owner):
    signature = inspect.signature(owner.double)
    assert str(signature) == "(self, number: int, *, plus: int = 0) -> int"
    assert owner.double.__doc__ == "Twice the number."
    assert owner.double.__annotations__["return"] is int


def test_coroutines_are_known_as_such():
    assert inspect.iscoroutinefunction(Coroutine.double)
    assert not inspect.iscoroutinefunction(Plain.double)


def test_both_sessions_have_the_same_methods():
    methods = [name for name in dir(Session) if not name.startswith("_")]
    assert methods == [name for name in dir(AsyncSession) if not name.startswith("_")]
    assert "step" in methods
    for name in methods:
        assert inspect.signature(getattr(Session, name)) == inspect.signature(getattr(AsyncSession, name)), name
        assert getattr(Session, name).__doc__, name
