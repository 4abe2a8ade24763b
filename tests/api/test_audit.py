"""What admins do is on record."""

import re
import time

import httpx
import pytest
from sqlalchemy import text

from optserve import errors

HOLES = {"name": "adam", "number": "1", "alias": "nothing", "evaluation_id": "nothing", "id_or_name": "nothing"}


@pytest.fixture
def admin(served):
    with served.client("admin") as client:
        yield client


def newest(admin, count, action=None):
    """The newest entries, once there are as many; a refusal is written down behind its reply."""
    deadline = time.monotonic() + 5
    while True:
        entries = [one for one in admin.audit.list(200) if action in (None, one.action)]
        if len(entries) >= count:
            return entries[:count]
        assert time.monotonic() < deadline, entries
        time.sleep(0.01)


def test_every_route_that_only_admins_may_write_to_leaves_one_entry(served, routes, call, admin):
    """By the OpenAPI document, so that a new one does too."""
    written = [route for route in routes if route.scope == "admin" and route.method not in ("GET", "HEAD")]
    assert len(written) >= 8
    for route in written:
        before = admin.audit.list(1)[0].id if admin.audit.list(1) else 0
        reply = call(route, "other admin", **HOLES, run_id="nothing")
        (entry,) = newest(admin, 1, route.operation["operationId"])
        assert entry.id == before + 1, route
        assert (entry.actor, entry.address) == ("other admin", "127.0.0.1")
        assert re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", route.path), entry.target)
        assert entry.outcome == ("done" if reply.is_success else "refused"), (str(route), reply.text)


def test_an_entry_tells_what_was_asked_for_but_no_secret(served, admin):
    made = admin.api_keys.create("audited", limits={"sessions": 3})
    (entry,) = newest(admin, 1, "create_api_key")
    assert (entry.actor, entry.target, entry.outcome) == ("admin", "/v1/api-keys", "done")
    assert entry.details == {"name": "audited", "scope": "client", "limits": {"sessions": 3}}
    assert 0 <= time.time() - time.mktime(time.strptime(entry.at[:19], "%Y-%m-%dT%H:%M:%S")) + time.timezone < 60
    admin.api_keys.revoke("audited")
    (entry,) = newest(admin, 1, "revoke_api_key")
    assert (entry.target, entry.details) == ("/v1/api-keys/audited", None)
    with served.database.session() as db_session:
        rows = db_session.execute(text("SELECT * FROM audit")).all()
    assert made.key not in str(rows)
    weights = {**served.headers("admin"), "Content-Type": "application/x-safetensors"}
    httpx.post(f"{served.url}/v1/optimizers/x%00y/versions", content=bytes(100_000), headers=weights)
    (entry,) = newest(admin, 1, "import_version")
    assert (entry.target, entry.details, entry.outcome) == (
        "/v1/optimizers/x%00y/versions",
        {"bytes": 100_000},
        "refused",
    )


def test_who_may_not_and_who_only_reads_leaves_none(served, admin):
    (before,) = newest(admin, 1)
    assert httpx.post(f"{served.url}/v1/api-keys", json={}, headers=served.headers("client")).status_code == 403
    admin.api_keys.list()
    admin.optimizers.set_alias("adam", "audited", 1)
    (entry,) = newest(admin, 1, "set_alias")
    assert entry.id == before.id + 1


def test_what_cannot_be_written_down_is_not_done(served, admin, rename):
    rename("audit", "gone")
    try:
        reply = httpx.post(
            f"{served.url}/v1/api-keys", json={"name": "unseen", "scope": "admin"}, headers=served.headers("admin")
        )
        assert reply.status_code >= 500
    finally:
        rename("gone", "audit")
    with pytest.raises(errors.ApiKeyNotFound):
        admin.api_keys.revoke("unseen")


def test_entries_come_in_pages(served, admin):
    for _ in range(3):
        admin.optimizers.set_alias("adam", "audited", 1)
    headers = served.headers("admin")
    first = httpx.get(f"{served.url}/v1/audit", params={"limit": 2}, headers=headers).json()
    query = {"limit": 1, "cursor": first["next_cursor"]}
    second = httpx.get(f"{served.url}/v1/audit", params=query, headers=headers).json()
    ids = [one["id"] for one in first["items"] + second["items"]]
    assert ids == [one.id for one in admin.audit.list(3)] == list(range(ids[0], ids[0] - 3, -1))
