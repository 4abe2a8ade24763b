"""Who may call what, on a server that has keys; test_matrix.py has it route by route."""

import asyncio
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import httpx
import pytest

import optserve
from optserve import errors
from optserve.wire.limits import Limits
from optserve_server.api.authorisation import Authorisation
from optserve_server.api.key_ring import KeyRing
from optserve_server.registry import api_keys
from optserve_server.registry.database import Database
from optserve_server.settings import Settings

OPEN = {"/healthz", "/readyz"}
ADMINS_ONLY = {"api-keys", "audit", "meta-training-runs"}
"""Resources that only admins see."""
WRITTEN_BY_ADMINS = {"optimizers", "evaluations"}
"""Resources that every key reads, and only admins change."""
EVERYBODYS = {"sessions", "tasks", "usage"}
"""Resources of every key."""

WITHIN_A_SECOND = 1.5  # a test's machine may be busy


def scope_of(method: str, path: str) -> str | None:
    """The scope that a route has to ask for, whatever it does ask for."""
    if path in OPEN:
        return None
    if path == "/metrics":
        return "admin"
    root, _, rest = path.removeprefix("/").partition("/")
    resource = rest.partition("/")[0]
    known = resource in ADMINS_ONLY | WRITTEN_BY_ADMINS | EVERYBODYS
    assert root == "v1" and known, f"{path} has no rule yet: give its resource one, at the top of this file"
    if resource in ADMINS_ONLY or (resource in WRITTEN_BY_ADMINS and method != "GET"):
        return "admin"
    return "client"


def test_every_route_documents_the_key_it_asks_for(served):
    document = httpx.get(f"{served.url}/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    paths = document["paths"]
    operations = [(method.upper(), path, operation) for path in paths for method, operation in paths[path].items()]
    assert [(scheme["type"], scheme["scheme"]) for scheme in schemes.values()] == [("http", "bearer")]
    for method, path, operation in operations:
        scope = scope_of(method, path)
        assert operation.get("security") == (None if scope is None else [{next(iter(schemes)): [scope]}]), path
        assert {"401", "403"} & set(operation["responses"]) == {
            None: set(), "client": {"401"}, "admin": {"401", "403"}
        }[scope], path  # fmt: skip


def test_what_is_not_there_is_not_told_to_strangers(served):
    assert served.get("none", "/v1/nothing").status_code == 401
    assert served.get("client", "/v1/nothing").status_code == 404
    for path in ("/docs", "/openapi.json"):
        assert served.get("none", path).status_code == 200


@pytest.mark.parametrize(
    ("header", "word"),
    [
        (None, "asks for an API key"),
        ("Bearer", "no API key of this server"),
        ("Basic {admin}", "no API key of this server"),
        ("{admin}", "no API key of this server"),
        ("Bearer {unknown}", "no API key of this server"),
        ("Bearer {revoked}", "'revoked' was revoked at 20"),
        ("Bearer {expired}", "'expired' expired at 20"),
    ],
)
def test_what_is_wrong_with_a_key_is_said_with_how_to_mend_it(served, header, word):
    headers = {"Authorization": header.format(**served.keys)} if header else {}
    detail = httpx.get(f"{served.url}/v1/tasks", headers=headers).json()["detail"]
    assert word in detail
    assert "optserve keys create" in detail
    assert not [key for key in served.keys.values() if key in detail]


def test_the_scheme_is_read_in_any_case(served):
    headers = {"Authorization": f"bearer  {served.keys['client']}"}
    assert httpx.get(f"{served.url}/v1/tasks", headers=headers).status_code == 200


def test_a_client_trains_and_an_admin_decides_what_is_served(served):
    with served.client("client") as client, served.client("admin") as admin:
        session = client.sessions.create("adam", {"w": (2,)})
        assert set(session.step({"w": [1.0, 2.0]})) == {"w"}
        with pytest.raises(errors.Forbidden, match=r"'client' has the scope client.*--scope admin"):
            client.optimizers.set_alias("adam", "mine", 1)
        admin.optimizers.set_alias("adam", "mine", 1)
        assert client.optimizers.get("adam").alias_history[0].moved_by == "admin"
        admin.optimizers.remove_alias("adam", "mine")
        assert client.optimizers.get("adam").alias_history[0].moved_by == "admin"
    with optserve.Client(served.url) as nobody, pytest.raises(errors.Unauthorized, match="OPTSERVE_API_KEY"):
        nobody.optimizers.list()


def test_a_key_is_made_and_revoked_over_http(served):
    with served.client("admin") as admin:
        made = admin.api_keys.create("short lived", expires_in_days=2)
        assert (made.scope, made.key[: len(made.prefix)]) == ("client", made.prefix)
        with optserve.Client(served.url, made.key) as client:
            client.tasks.list()
            admin.api_keys.revoke(made.id)  # in this process it counts at once
            with pytest.raises(errors.Unauthorized, match="'short lived' was revoked"):
                client.tasks.list()
        admin.api_keys.revoke(made.id)
        listed = {one.id: one for one in admin.api_keys.list()}
        assert listed[made.id].revoked_at
        assert made.key not in str(listed)
        with pytest.raises(errors.ApiKeyNotFound, match="optserve keys list"):
            admin.api_keys.revoke("short lived")
        with pytest.raises(errors.ApiKeyExists):
            admin.api_keys.create("admin")
        with pytest.raises(errors.RequestInvalid, match="did you mean 'admin'"):
            admin.api_keys.create("other", "admn")


def test_a_repeated_request_makes_one_key(served):
    headers = {**served.headers("admin"), "Idempotency-Key": "once"}
    body = {"name": "once", "scope": "client"}
    first, again = (httpx.post(f"{served.url}/v1/api-keys", json=body, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code, again.json()) == (201, 201, first.json())
    assert first.headers["cache-control"] == "no-store"
    described = httpx.get(served.url + first.headers["location"], headers=headers).json()
    assert described == {name: value for name, value in first.json().items() if name != "key"}
    other = httpx.post(f"{served.url}/v1/api-keys", json={**body, "name": "other"}, headers=headers)
    assert other.json()["type"] == "urn:optserve:problem:idempotency-conflict"


def test_the_list_goes_page_by_page(served):
    headers = served.headers("admin")
    first = httpx.get(f"{served.url}/v1/api-keys", params={"limit": 2}, headers=headers).json()
    query = {"limit": 1, "cursor": first["next_cursor"]}
    second = httpx.get(f"{served.url}/v1/api-keys", params=query, headers=headers).json()
    assert [one["name"] for one in first["items"] + second["items"]] == ["client", "admin", "revoked"]
    refused = httpx.get(f"{served.url}/v1/api-keys", params={"cursor": "x"}, headers=headers)
    assert (refused.status_code, refused.json()["errors"][0]["parameter"]) == (422, "cursor")


def test_keys_made_and_revoked_elsewhere_count_within_a_second(served):
    """By another process, such as `optserve keys`: this server only sees the database."""
    served.keys["elsewhere"] = served.add_key("elsewhere")
    assert seconds_until(served, "elsewhere", 200) < WITHIN_A_SECOND
    served.revoke("elsewhere")
    assert seconds_until(served, "elsewhere", 401) < WITHIN_A_SECOND


def seconds_until(served, key: str, status: int) -> float:
    begun = time.monotonic()
    while served.get(key).status_code != status:
        assert time.monotonic() < begun + 30
        time.sleep(0.02)
    return time.monotonic() - begun


def test_steps_do_not_wait_for_the_database(served, rename):
    with served.client("client") as client:
        session = client.sessions.create("adam", {"w": (2,)})
        tables = ("api_keys", "usage", "audit")
        for table in tables:
            rename(table, f"{table}_gone")
        time.sleep(WITHIN_A_SECOND)  # the keys cannot be read again
        session.step({"w": [1.0, 2.0]})
        for table in tables:
            rename(f"{table}_gone", table)
    served.keys["late"] = served.add_key("late")
    assert seconds_until(served, "late", 200) < WITHIN_A_SECOND


def test_a_mounted_application_is_as_closed():
    """The routing takes the mount's prefix away, so the keys must be asked for below it."""
    keys = KeyRing(None, Limits(), may_be_open=False)
    application = SimpleNamespace(state=SimpleNamespace(keys=keys))
    sent = []

    async def behind(scope, receive, send):
        sent.append({"status": "let in"})

    async def send(message):
        sent.append(message)

    for root, path in (("", "/v1/tasks"), ("/optserve", "/optserve/v1/tasks"), ("/optserve", "/optserve/healthz")):
        scope = {"type": "http", "root_path": root, "path": path, "headers": [], "app": application}
        asyncio.run(Authorisation(behind)(scope, None, send))
    assert [message["status"] for message in sent if "status" in message] == [401, 401, "let in"]


def test_an_open_server_does_not_care_for_keys_of_others(server):
    for header in ("Bearer of-another-server", "Basic x"):
        assert httpx.get(f"{server.url}/v1/tasks", headers={"Authorization": header}).status_code == 200


def test_the_last_use_is_written_down_and_the_last_key_opens_the_server_again(serving, tmp_path):
    with serving(Settings(data_dir=tmp_path)) as url, optserve.Client(url) as anybody:
        admin = optserve.Client(url, anybody.api_keys.create("first", "admin").key)
        with pytest.raises(errors.Unauthorized):
            anybody.tasks.list()
        admin.tasks.list()
        (key,) = admin.api_keys.list()
        assert key.last_used_at is None  # many uses are one write, later
        admin.api_keys.revoke("first")
        with pytest.raises(errors.Unauthorized, match="was revoked"):
            admin.tasks.list()  # whoever has a key learns what became of it
        anybody.tasks.list()
        admin.close()
    database = Database(Settings(data_dir=tmp_path).database)
    with database.session() as db_session:
        (row,) = api_keys.list_keys(db_session)
    assert row.created_at < row.last_used_at <= row.revoked_at
    database.close()


def test_a_key_is_refused_from_the_moment_that_it_expires(served):
    with served.client("admin") as admin:
        made = admin.api_keys.create("ephemeral", expires_in_days=1.5 / 86400)
    with optserve.Client(served.url, made.key) as client:
        began = time.monotonic()
        with pytest.raises(errors.Unauthorized, match="'ephemeral' expired at"):
            while True:
                client.tasks.list()
                assert time.monotonic() - began < 10
                time.sleep(0.05)
        assert datetime.now(UTC) >= datetime.fromisoformat(made.expires_at)


def test_no_key_is_logged(start_server):
    """Neither a good one, nor one that is none; of a step, a refusal, and an act."""
    server = start_server()
    with optserve.Client(server.url) as anybody:
        key = anybody.api_keys.create("logged", "admin").key
    with optserve.Client(server.url, key) as client:
        client.sessions.create("adam", {"w": (2,)}).step({"w": [1.0, 2.0]})
        with pytest.raises(errors.ApiKeyNotFound):
            client.api_keys.revoke("nobody")
    wrong = api_keys.KEY_PREFIX + "1" * 48
    assert httpx.get(f"{server.url}/v1/tasks", headers={"Authorization": f"Bearer {wrong}"}).status_code == 401
    server.process.terminate()
    server.process.wait(30)
    log = (server.data_dir.parent / "stderr").read_text()
    assert '"caller": "logged"' in log
    assert '"status": 401' in log
    for secret in (key, wrong, api_keys.digest(key)):
        assert secret not in log
