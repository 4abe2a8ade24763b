"""The public surface, and what importing it costs."""

import subprocess
import sys

import pytest

import optserve
import optserve.optax
import optserve.torch
from optserve.connection import Address
from optserve.errors import AddressInvalid

HEAVY = ("torch", "jax", "optax", "pydantic", "fastapi", "sqlalchemy", "optserve_server")


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_public_names():
    assert optserve.__all__ == ["AsyncClient", "AsyncSession", "Client", "Session", "__version__", "errors"]
    assert optserve.torch.__all__ == ["LocalOptimizer", "RemoteOptimizer"]
    assert optserve.optax.__all__ == ["RemoteState", "RemoteTransformation", "remote_optimizer"]
    for name in optserve.__all__:
        assert getattr(optserve, name)
        assert name in dir(optserve)
    with pytest.raises(AttributeError, match="no attribute 'Klient'"):
        _ = optserve.Klient


def test_the_client_needs_neither_torch_nor_jax_nor_the_server():
    loaded = python("import sys, optserve, optserve.cli; optserve.Client; print(*sys.modules)").split()
    assert "optserve.client" in loaded
    assert not [name for name in HEAVY if name in loaded]


@pytest.mark.parametrize("module", ["optserve", "optserve.cli"])
def test_importing_the_package_or_the_command_line_alone_is_next_to_nothing(module):
    loaded = python(f"import sys; import {module}; print(*sys.modules)").split()
    assert module in loaded
    assert not [name for name in ("numpy", "httpx", *HEAVY) if name in loaded]


@pytest.mark.parametrize(
    ("url", "base", "socket"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1", None),
        ("https://example.org/optserve/", "https://example.org/optserve/v1", None),
        ("unix:///run/optserve.sock", "http://optserve/v1", "/run/optserve.sock"),
    ],
)
def test_addresses(url, base, socket):
    assert Address.parse(url) == Address(url, base, socket)


@pytest.mark.parametrize("url", ["localhost:8000", "unix://run/x.sock", "ftp://h", "http://", "http://h?x=1", "/x"])
def test_what_is_no_address_is_refused_with_the_forms_that_are(url):
    with pytest.raises(AddressInvalid, match="write http://HOST:PORT"):
        optserve.Client(url)


def test_the_environment_says_where_the_server_is(monkeypatch):
    monkeypatch.delenv("OPTSERVE_URL", raising=False)
    assert optserve.Client().url == "http://127.0.0.1:8000"
    monkeypatch.setenv("OPTSERVE_URL", "http://example.org:1")
    assert optserve.Client().url == optserve.AsyncClient().url == "http://example.org:1"
    assert optserve.Client("http://example.org:2").url == "http://example.org:2"


def test_a_server_that_is_not_there_is_named_with_what_to_do():
    client = optserve.Client("http://127.0.0.1:9", retries=0)
    with client, pytest.raises(optserve.errors.ConnectionFailed, match=r"http://127.0.0.1:9 .*optserve serve"):
        client.optimizers.list()
