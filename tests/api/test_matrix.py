"""Every route × every kind of key, from the OpenAPI document alone, so that a new route is in it or fails.

A route's rule is what its document says: `security`, the scope that it asks for, and `x-optserve-tenancy`, whether the
things at that address belong to the key that made them.
"""

from typing import Any

import httpx

NO_KEYS = ("none", "unknown", "revoked", "expired")
CLIENTS, ADMINS = ("client", "other client"), ("admin", "other admin")
OWNERS = {"session_id": {"client": "client", "admin": "admin"}, "run_id": {"admin": "admin"}}
"""Of each hole for a thing that belongs to a key: by scope, whose thing it is filled with."""
SHARED_HOLES = {"name": "adam", "number": "1", "alias": "nothing", "evaluation_id": "nothing", "id_or_name": "nothing"}
IN_OWN = {"step": "0", "name": "nothing"}
"""Holes behind those."""
NEVER = {"session_id": "0" * 32, "run_id": "0" * 16}
SLUGS = {"session_id": "session-not-found", "run_id": "run-not-found"}


def made(served, hole: str, key: str, tiny_recipe: dict[str, Any]) -> str:
    """Something new of this key's."""
    path, body = {
        "session_id": ("sessions", {"optimizer": "adam", "parameters": [{"name": "w", "shape": [1]}]}),
        "run_id": ("meta-training-runs", tiny_recipe),
    }[hole]
    reply = httpx.post(f"{served.url}/v1/{path}", json=body, headers=served.headers(key), timeout=60)
    assert reply.is_success, reply.text
    return str(reply.json()["id"])


def refusal(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["type"].removeprefix("urn:optserve:problem:")


def test_every_route_has_a_rule(routes):
    for route in routes:
        assert route.scope in ("client", "admin", None), route
        assert (route.scope is None) == (route.path in ("/healthz", "/readyz")), route
        assert route.scope is None or route.operation["x-optserve-tenancy"] in ("own", "shared"), route
        if route.hole:
            assert route.operation["x-optserve-tenancy"] == "own", route


def test_without_a_valid_key_nothing_is_served_but_probes(routes, call):
    holes = SHARED_HOLES | IN_OWN | NEVER
    for route in routes:
        for key in NO_KEYS:
            reply = call(route, key, **holes)
            if route.scope is None:
                assert reply.is_success, route
            else:
                assert refusal(reply) == (401, "unauthorized"), (str(route), key)
                assert reply.headers["www-authenticate"] == "Bearer"


def test_a_client_calls_what_is_for_clients_and_an_admin_everything(routes, call):
    holes = SHARED_HOLES | IN_OWN | NEVER
    for route in routes:
        for key in (*CLIENTS, *ADMINS):
            reply = call(route, key, **holes)
            if route.allows(key):
                assert reply.status_code not in (401, 403), (str(route), key)
            else:
                assert refusal(reply) == (403, "forbidden"), (str(route), key)


def test_what_belongs_to_a_key_is_not_there_for_others(routes, call, served, tiny_recipe):
    """Nor can it be told from what never was: the reply is the same but for the id."""
    holes = SHARED_HOLES | IN_OWN
    walked = set()
    run = made(served, "run_id", "admin", tiny_recipe)  # one for all routes, for it takes a while and none deletes it
    for route in (route for route in routes if route.hole):
        for owner in OWNERS[route.hole].values():
            thing = run if route.hole == "run_id" else made(served, route.hole, owner, tiny_recipe)
            never = NEVER[route.hole]
            for key in {*CLIENTS, *ADMINS} - {owner}:
                if not route.allows(key):
                    continue
                reply = call(route, key, **{**holes, route.hole: thing})
                assert refusal(reply) == (404, SLUGS[route.hole]), (str(route), key, reply.text)
                of_none = call(route, key, **{**holes, route.hole: never})
                assert reply.text.replace(thing, never) == of_none.text, (str(route), key)
                walked.add((route.method, route.path, owner, key))
            reply = call(route, owner, **{**holes, route.hole: thing})
            assert reply.status_code not in (401, 403), (str(route), owner)
            assert SLUGS[route.hole] not in reply.text, (str(route), owner)
    assert len(walked) > 60


def test_lists_of_what_belongs_to_a_key_show_its_own(routes, call, served, tiny_recipe):
    lists = [
        route
        for route in routes
        if route.operation.get("x-optserve-tenancy") == "own" and route.method == "GET" and "{" not in route.path
    ]
    (usage,) = (route for route in lists if route.path == "/v1/usage")
    lists.remove(usage)
    for key in (*CLIENTS, *ADMINS):
        assert call(usage, key).json()["key"] == key
    own = {hole: {made(served, hole, owner, tiny_recipe) for owner in OWNERS[hole].values()} for hole in OWNERS}
    assert {route.path for route in lists} == {"/v1/sessions", "/v1/meta-training-runs"}
    for route in lists:
        made_there = own["session_id" if "sessions" in route.path else "run_id"]
        seen = {}
        for key in (*CLIENTS, *ADMINS):
            if route.allows(key):
                seen[key] = {item["id"] for item in call(route, key).json()["items"]}
        assert not made_there & (seen.get("other client", set()) | seen["other admin"])
        assert set.union(*seen.values()) >= made_there
        assert not set.intersection(*seen.values())
