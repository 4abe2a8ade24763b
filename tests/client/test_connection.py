"""Addresses, API keys and proxies; names and requests that cannot become an address."""

import asyncio
import socket

import numpy as np
import pytest

from optserve import AsyncClient, Client, errors


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1", "http://127.0.0.1:99999", "http://127.0.0.1:x", "http://127.0.0.1 :80", "http://a\nb",
        " http://127.0.0.1", "http://127.0.0.1/\x00", "ftp://host", "127.0.0.1:8000", "unix://relative",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(monkeypatch, url):
    with pytest.raises(errors.AddressInvalid):
        Client(url)
    if "\x00" not in url:  # no variable can hold it
        monkeypatch.setenv("OPTSERVE_URL", url)
        with pytest.raises(errors.AddressInvalid):
            AsyncClient()


@pytest.mark.parametrize("key", ["ключ", "clé", "two\nlines", "tab\t"])
def test_an_api_key_that_no_header_can_carry_is_refused_and_not_shown(server, key):
    with pytest.raises(errors.Unauthorized, match="printable ASCII") as raised:
        Client(server.url, key)
    assert key not in str(raised.value)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/"])
def test_names_that_no_address_can_carry_are_refused(client, name):
    session = client.sessions.create("sgd", {"w": (1,)})
    for call in (
        lambda: session.save(name),
        lambda: client.sessions.get(name),
        lambda: client.optimizers.get(name),
        lambda: client.optimizers.set_alias("adam", name, 1),
    ):
        with pytest.raises(errors.RequestInvalid, match="cannot be a name"):
            call()


def test_too_many_skipped_names_are_told_with_what_to_do(client):
    shapes = {f"layer.{index}.{'x' * 50}": (1,) for index in range(2000)}
    session = client.sessions.create("sgd", {**shapes, "w": (1,)})
    with pytest.raises(errors.RequestInvalid, match="group of their own"):
        session.step({"w": np.ones(1)}, skip=shapes)
    assert session.next_step == 0


def test_servers_on_this_machine_are_called_without_a_proxy(server, unix_relay, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as dead:
        proxy = f"http://127.0.0.1:{dead.getsockname()[1]}"
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for url in (server.url, server.url.replace("127.0.0.1", "localhost"), unix_relay.url):
        with Client(url, retries=0) as client:
            assert client.optimizers.list()

    async def listed():
        async with AsyncClient(server.url, retries=0) as client:
            return await client.optimizers.list()

    assert asyncio.run(listed())
    with (
        Client("http://optserve.invalid", retries=0) as client,
        pytest.raises(errors.ConnectionFailed, match="refused"),
    ):
        client.optimizers.list()
