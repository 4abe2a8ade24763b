import json

import pytest

from optserve.decoding import decode
from optserve.errors import ReplyInvalid
from optserve.wire.bodies import CheckpointInfo, OptimizerInfo, Page, SessionInfo, VersionSummary
from optserve.wire.differences import Difference

SESSION = {
    "id": "s1",
    "optimizer": {"name": "lstm", "version": 3, "sha256": "ab"},
    "next_step": 4,
    "coordinates": 6,
    "parameters": [{"name": "w", "shape": [2, 3]}],
    "dtype": "float32",
    "hyperparameters": {"betas": [0.9, 0.99]},
    "horizon": None,
    "label": "",
    "ttl_seconds": 60,
    "created_at": "2025-01-01T00:00:00Z",
    "expires_at": "2025-01-01T00:01:00Z",
}


def decoded(kind, value):
    return decode(kind, json.dumps(value).encode())


def test_nested_bodies():
    info = decoded(SessionInfo, SESSION)
    assert info.optimizer.version == 3
    assert info.parameters[0].shape == [2, 3]
    assert info.hyperparameters == {"betas": [0.9, 0.99]}
    assert info.horizon is None
    assert isinstance(info.ttl_seconds, float)


@pytest.mark.parametrize("value", [None, True, 0.5, "adam", [1, {"a": 2}]])
def test_a_value_of_any_kind_stays_what_it_is(value):
    found = decoded(Difference, {"path": "recipe.seed", "before": value, "after": None})
    assert found == Difference("recipe.seed", value, None)


def test_what_a_newer_server_adds_is_passed_over():
    info = decoded(SessionInfo, {**SESSION, "mood": "good", "optimizer": {**SESSION["optimizer"], "colour": "red"}})
    assert info == decoded(SessionInfo, SESSION)


def test_pages_of_any_kind():
    page = decoded(Page[CheckpointInfo], {"items": [{"name": "a", "step": 1, "created_at": "now"}], "next_cursor": "n"})
    assert page == Page([CheckpointInfo("a", 1, "now")], "n")
    assert decoded(Page[SessionInfo], {"items": []}).next_cursor is None


def test_inherited_members():
    info = decoded(
        OptimizerInfo,
        {
            "name": "lstm", "kind": "lstm", "learned": True, "default": False, "latest": 1, "champion": 2,
            "description": "", "uses": ["loss"], "needs": [], "hyperparameters": {}, "aliases": [],
            "alias_history": [{"alias": "a", "version": None, "moved_at": "", "moved_by": ""}],
            "versions": [{"version": 1, "sha256": "", "created_at": "", "metrics": {"loss": 1}}],
        },
    )  # fmt: skip
    assert info.champion == 2
    assert info.alias_history[0].version is None
    assert info.versions == [VersionSummary(1, "", "", {"loss": 1})]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<html>", "not JSON"),
        (b"[" * 10_000, "not JSON"),
        (b"[]", "SessionInfo of the reply is '\\[\\]', not an object"),
        (json.dumps({**SESSION, "next_step": "four"}).encode(), "next_step of the reply is 'four', not a int"),
        (json.dumps({**SESSION, "parameters": {}}).encode(), "parameters of the reply is '{}', not a list"),
        (json.dumps({**SESSION, "parameters": [{"name": "w"}]}).encode(), r"lacks SessionInfo.parameters\[0\].shape"),
    ],
)  # fmt: skip
def test_what_is_no_such_reply_says_where(content, words):
    with pytest.raises(ReplyInvalid, match=words):
        decode(SessionInfo, content)
