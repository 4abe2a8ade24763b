"""The addresses of optimizers and tasks, over a real socket, against a server of their own."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch

from optserve.wire import tensors
from optserve_server.optimizers import HAND_DESIGNED, build, weights
from optserve_server.registry.database import Database
from optserve_server.settings import Settings

SAFETENSORS = {"Content-Type": "application/x-safetensors"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    data_dir: Path = tmp_path_factory.mktemp("optimizers")
    return Settings(data_dir=data_dir, default_optimizer="adam@1", max_body_bytes=1 << 20)


@pytest.fixture(scope="module")
def http(serving, settings: Settings) -> Iterator[httpx.Client]:
    with serving(settings) as url, httpx.Client(base_url=f"{url}/v1") as client:
        yield client


@pytest.fixture(scope="module")
def weights_file() -> Callable[..., bytes]:
    """Makes a small untrained LSTM's weights file; another seed is another content."""
    optimizer = build({"kind": "lstm", "hidden_size": 4, "layers": 1})

    def make(seed: int, **metadata: str) -> bytes:
        return weights.encode(optimizer, optimizer.initial_phi(torch.Generator().manual_seed(seed)), metadata)

    return make


@pytest.fixture
def mine(http, weights_file, request) -> str:
    """The name of a new optimizer with three versions."""
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:12] + "-mine"
    for seed in range(3):
        reply = http.post(f"/optimizers/{name}/versions", content=weights_file(seed), headers=SAFETENSORS)
        assert reply.status_code == 201, reply.text
    return name


def _problem(reply: httpx.Response) -> tuple[int, str, str]:
    assert reply.headers["content-type"] == "application/problem+json", reply.text
    body = reply.json()
    assert body["status"] == reply.status_code
    return reply.status_code, body["type"].removeprefix("urn:optserve:problem:"), body["detail"]


# --- reading ----------------------------------------------------------------------------------------------------------


def test_the_list_goes_page_by_page_and_marks_the_default(http):
    items, cursor = [], None
    while True:
        page = http.get("/optimizers", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        assert 1 <= len(page["items"]) <= 2
        items += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    names = [item["name"] for item in items]
    assert names == sorted(set(names))
    assert set(HAND_DESIGNED) <= set(names)
    assert [item["name"] for item in items if item["default"]] == ["adam"]
    assert items == http.get("/optimizers").json()["items"]


def test_a_hand_designed_optimizer_tells_its_hyperparameters(http):
    adamw = http.get("/optimizers/adamw").json()
    assert (adamw["learned"], adamw["kind"], adamw["latest"], adamw["champion"]) == (False, "adamw", 1, None)
    assert adamw["hyperparameters"]["betas"] == [0.9, 0.999]
    assert adamw["uses"] == adamw["needs"] == ["parameters"]
    assert adamw["description"]


def test_an_optimizer_tells_its_aliases_and_versions_the_newest_first(http, mine):
    http.put(f"/optimizers/{mine}/aliases/champion", json={"version": 2})
    told = http.get(f"/optimizers/{mine}").json()
    assert (told["latest"], told["champion"], told["learned"], told["kind"]) == (3, 2, True, "lstm")
    assert [version["version"] for version in told["versions"]] == [3, 2, 1]
    assert told["aliases"] == [{"alias": "champion", "version": 2}, {"alias": "latest", "version": 3}]
    moves = [(move["alias"], move["version"], move["moved_by"]) for move in told["alias_history"]]
    assert moves[:2] == [("champion", 2, "anonymous"), ("latest", 3, "server")]
    assert all(move["moved_at"].endswith("+00:00") for move in told["alias_history"])


def test_versions_go_page_by_page(http, mine):
    first = http.get(f"/optimizers/{mine}/versions", params={"limit": 2}).json()
    second = http.get(f"/optimizers/{mine}/versions", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [one["version"] for one in first["items"] + second["items"]] == [3, 2, 1]
    assert second["next_cursor"] is None


@pytest.mark.parametrize("address", ["/optimizers?cursor=%00", "/optimizers/adam/versions?cursor=first"])
def test_a_cursor_of_ones_own_is_refused(http, address):
    status, slug, detail = _problem(http.get(address))
    assert (status, slug) == (422, "request-invalid")
    assert "send `next_cursor` as it came" in detail


@pytest.mark.parametrize(
    ("address", "slug", "message"),
    [
        ("/optimizers/adm", "optimizer-not-found", "did you mean 'adam'?"),
        ("/optimizers/adm/versions", "optimizer-not-found", "did you mean 'adam'?"),
        ("/optimizers/adm/versions/1/weights", "optimizer-not-found", "did you mean 'adam'?"),
        ("/optimizers/adam/versions/2", "version-not-found", "'adam' has no version 2; it has only version 1."),
        ("/optimizers/adam/versions/0/weights", "version-not-found", "no version 0"),
        ("/optimizers/ad%00m", "optimizer-not-found", "no optimizer 'ad\\x00m'"),
    ],
)
def test_what_is_not_there_says_what_comes_near(http, address, slug, message):
    status, found, detail = _problem(http.get(address))
    assert (status, found) == (404, slug)
    assert message in detail


def test_two_versions_are_compared(http, weights_file):
    for seed, rate in enumerate((0.1, 0.2)):
        recipe = f'{{"name": "compared", "meta_optimizer": {{"learning_rate": {rate}}}}}'
        http.post("/optimizers/compared/versions", content=weights_file(seed, recipe=recipe), headers=SAFETENSORS)
    told = http.get("/optimizers/compared/versions/1/diff", params={"with": "compared@latest"}).json()
    item = {"path": "recipe.meta_optimizer.learning_rate", "before": 0.1, "after": 0.2}
    assert told == {"before": "compared@1", "after": "compared@2", "items": [item]}
    for reference, slug in (("compared@9", "version-not-found"), ("compard", "optimizer-not-found")):
        reply = http.get("/optimizers/compared/versions/1/diff", params={"with": reference})
        assert _problem(reply)[:2] == (404, slug)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_an_imported_file_comes_back_byte_for_byte(http, weights_file):
    data = weights_file(7, description="A small one.", metrics='{"meta_loss_held_out": 0.5}', torch="2.6")
    reply = http.post("/optimizers/imported/versions", content=data, headers=SAFETENSORS)
    assert (reply.status_code, reply.headers["location"]) == (201, "/v1/optimizers/imported/versions/1")
    version = http.get(reply.headers["location"].removeprefix("/v1")).json()
    assert version == reply.json()
    assert version["sha256"] == hashlib.sha256(data).hexdigest()
    assert version["architecture"]["hidden_size"] == 4
    assert version["environment"] == {"torch": "2.6"}
    assert http.get("/optimizers/imported").json()["description"] == "A small one."
    download = http.get("/optimizers/imported/versions/1/weights")
    assert download.content == data
    assert download.headers["content-type"] == SAFETENSORS["Content-Type"]
    assert download.headers["etag"] == f'"{version["sha256"]}"'
    assert 'filename="imported-1.safetensors"' in download.headers["content-disposition"]


def test_weights_that_have_not_changed_are_not_sent_again(http, mine):
    address = f"/optimizers/{mine}/versions/1/weights"
    tag = http.get(address).headers["etag"]
    again = http.get(address, headers={"If-None-Match": f'W/{tag}, "other"'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert http.get(address, headers={"If-None-Match": '"other"'}).status_code == 200


def test_the_same_file_again_is_the_same_version(http, mine, weights_file):
    reply = http.post(f"/optimizers/{mine}/versions", content=weights_file(1), headers=SAFETENSORS)
    assert (reply.status_code, reply.json()["version"]) == (200, 2)
    assert http.get(f"/optimizers/{mine}").json()["latest"] == 3


def test_an_idempotency_key_is_for_one_request(http, mine, weights_file):
    headers = {**SAFETENSORS, "Idempotency-Key": mine}
    first, again = [http.post(f"/optimizers/{mine}/versions", content=weights_file(8), headers=headers) for _ in "12"]
    assert (again.status_code, again.json()) == (first.status_code, first.json()) == (201, first.json())
    other = http.post(f"/optimizers/{mine}/versions", content=weights_file(9), headers=headers)
    assert _problem(other)[:2] == (409, "idempotency-conflict")
    assert http.get(f"/optimizers/{mine}").json()["latest"] == 4


def _without_bias(data: bytes) -> bytes:
    arrays, metadata = tensors.decode(data)
    del arrays["output.bias"]
    return tensors.encode(arrays, metadata)


@pytest.mark.parametrize(
    ("change", "status", "slug", "message"),
    [
        (lambda data: b"", 400, "malformed-body", "not a safetensors file"),
        (lambda data: data[:-1], 400, "malformed-body", "not a safetensors file"),
        (lambda data: b"{}" * 50, 400, "malformed-body", "not a safetensors file"),
        (_without_bias, 422, "weights-invalid", "lack output.bias"),
        (lambda data: weights.encode(build({"kind": "adam"}), {}), 422, "weights-invalid", "built in"),
        (lambda data: bytes((1 << 20) + 1), 413, "body-too-large", "at most 1048576 bytes"),
    ],
)
def test_a_file_that_cannot_be_imported_creates_nothing(http, weights_file, change, status, slug, message):
    reply = http.post("/optimizers/broken/versions", content=change(weights_file(0)), headers=SAFETENSORS)
    found = _problem(reply)
    assert found[:2] == (status, slug)
    assert message in found[2]
    assert http.get("/optimizers/broken").status_code == 404


@pytest.mark.parametrize("media_type", ["application/json", "text/plain", ""])
def test_a_file_of_another_media_type_is_refused(http, weights_file, media_type):
    headers = {"Content-Type": media_type} if media_type else {}
    reply = http.post("/optimizers/broken/versions", content=weights_file(0), headers=headers)
    assert _problem(reply)[:2] == (415, "unsupported-media-type")


@pytest.mark.parametrize(("name", "message"), [("adam", "built in"), ("Lstm", "lower-case"), ("x" * 65, "1 to 64")])
def test_some_names_cannot_be_imported_under(http, weights_file, name, message):
    status, slug, detail = _problem(
        http.post(f"/optimizers/{name}/versions", content=weights_file(0), headers=SAFETENSORS)
    )
    assert (status, slug) == (422, "request-invalid")
    assert message in detail


# --- aliases ----------------------------------------------------------------------------------------------------------


def test_an_alias_is_set_moved_and_removed(http, mine):
    address = f"/optimizers/{mine}/aliases/stable"
    assert http.put(address, json={"version": 1}).json() == {"alias": "stable", "version": 1}
    assert http.put(address, json={"version": 3}).json() == {"alias": "stable", "version": 3}
    assert http.delete(address).status_code == 204
    assert _problem(http.delete(address))[:2] == (404, "alias-not-found")
    history = http.get(f"/optimizers/{mine}").json()["alias_history"]
    assert [move["version"] for move in history if move["alias"] == "stable"] == [None, 3, 1]


@pytest.mark.parametrize(
    ("alias", "body", "status", "slug"),
    [
        ("latest", {"version": 1}, 409, "alias-reserved"),
        ("best", {"version": 1}, 409, "alias-reserved"),
        ("7", {"version": 1}, 422, "request-invalid"),
        ("Stable", {"version": 1}, 422, "request-invalid"),
        ("stable", {"version": 4}, 404, "version-not-found"),
        ("stable", {"version": 2**70}, 404, "version-not-found"),
        ("stable", {"version": "one"}, 422, "request-invalid"),
        ("stable", {"version": 1, "force": True}, 422, "request-invalid"),
        ("champion", {"version": 1, "force": True, "evaluation": "x"}, 422, "request-invalid"),
        ("champion", {"version": 1, "force": 1}, 422, "request-invalid"),
        ("stable", {}, 422, "request-invalid"),
        ("stable", [], 422, "request-invalid"),
    ],
)
def test_an_alias_that_cannot_be_set_leaves_no_trace(http, mine, alias, body, status, slug):
    assert _problem(http.put(f"/optimizers/{mine}/aliases/{alias}", json=body))[:2] == (status, slug)
    told = http.get(f"/optimizers/{mine}").json()
    assert told["aliases"] == [{"alias": "latest", "version": 3}]
    assert len(told["alias_history"]) == 3


def test_a_champion_is_replaced_by_force_and_its_history_says_so(http, mine):
    address = f"/optimizers/{mine}/aliases/champion"
    assert http.put(address, json={"version": 1}).status_code == 200  # the first champion has nobody to beat
    refused = http.put(address, json={"version": 3})
    assert _problem(refused)[:2] == (409, "promotion-unproven")
    assert refused.json()["champion"] == f"{mine}@1"
    unknown = http.put(address, json={"version": 3, "evaluation": "nothing"})
    assert _problem(unknown)[:2] == (404, "evaluation-not-found")
    assert http.put(address, json={"version": 3, "force": True}).json() == {"alias": "champion", "version": 3}
    history = http.get(f"/optimizers/{mine}").json()["alias_history"]
    champions = [move for move in history if move["alias"] == "champion"]
    assert [(move["version"], move["forced"], move["evaluation"]) for move in champions] == [
        (3, True, None),
        (1, False, None),
    ]


def test_a_champion_is_replaced_by_whoever_beat_it_and_its_history_names_the_evaluation(
    http, settings, mine, add_evaluation
):
    address = f"/optimizers/{mine}/aliases/champion"
    http.put(address, json={"version": 1})
    database = Database(settings.database)
    won = add_evaluation(database, {f"{mine}@3": 0.8, f"{mine}@1": 0.9})
    database.close()
    refused = http.put(address, json={"version": 2, "evaluation": won})
    assert _problem(refused)[:2] == (409, "promotion-unproven")
    assert http.put(address, json={"version": 3, "evaluation": won}).json() == {"alias": "champion", "version": 3}
    move = http.get(f"/optimizers/{mine}").json()["alias_history"][0]
    assert (move["version"], move["forced"], move["evaluation"]) == (3, False, won)


def test_a_removal_of_the_servers_own_alias_is_refused(http, mine):
    assert _problem(http.delete(f"/optimizers/{mine}/aliases/latest"))[:2] == (409, "alias-reserved")


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_every_task_family_has_a_description_and_a_schema(http):
    page = http.get("/tasks").json()
    families = {item["family"]: item for item in page["items"]}
    assert {"quadratic", "digits-mlp"} <= set(families)
    assert families["quadratic"]["parameters_schema"]["properties"]["dimension"]["default"] == 10
    assert all(item["description"] for item in page["items"])
    first = http.get("/tasks", params={"limit": 1}).json()
    second = http.get("/tasks", params={"limit": 1000, "cursor": first["next_cursor"]}).json()
    assert first["items"] + second["items"] == page["items"]
    assert second["next_cursor"] is None


def test_weights_of_another_kind_do_not_become_a_version(server) -> None:
    weights = httpx.get(f"{server.url}/v1/optimizers/lstm/versions/1/weights").content
    reply = httpx.post(
        f"{server.url}/v1/optimizers/rnnprop/versions",
        content=weights,
        headers={"Content-Type": "application/x-safetensors"},
    )
    assert reply.status_code == 422
    assert reply.json()["detail"].startswith(
        "'rnnprop' is of the kind 'rnnprop', and these weights are of the kind 'lstm'"
    )
    assert httpx.get(f"{server.url}/v1/optimizers/rnnprop").json()["latest"] == 1


@pytest.mark.parametrize("key", ["metrics", "recipe"])
def test_metadata_nested_deeper_than_a_reply_can_be_is_refused(server, key: str) -> None:
    arrays, metadata = tensors.decode(httpx.get(f"{server.url}/v1/optimizers/lstm/versions/1/weights").content)
    nested = '{"a":' + "[" * 400 + "]" * 400 + "}"
    reply = httpx.post(
        f"{server.url}/v1/optimizers/deep-{key}/versions",
        content=tensors.encode(arrays, {**metadata, key: nested}),
        headers={"Content-Type": "application/x-safetensors"},
    )
    assert reply.status_code == 422
    assert f"the metadata's {key} is nested more than 32 deep" in reply.json()["detail"]
    assert httpx.get(f"{server.url}/v1/optimizers/deep-{key}").status_code == 404


def test_one_idempotency_key_brings_one_import_however_many_come_at_once(server) -> None:
    arrays, metadata = tensors.decode(httpx.get(f"{server.url}/v1/optimizers/lstm/versions/1/weights").content)

    def send(number: int) -> int:
        return httpx.post(
            f"{server.url}/v1/optimizers/at-once/versions",
            content=tensors.encode(arrays, {**metadata, "description": str(number)}),
            headers={"Content-Type": "application/x-safetensors", "Idempotency-Key": "at-once"},
        ).status_code

    with ThreadPoolExecutor(6) as pool:
        answers = sorted(pool.map(send, range(6)))
    assert answers == [201, 409, 409, 409, 409, 409]
    assert httpx.get(f"{server.url}/v1/optimizers/at-once").json()["latest"] == 1
