import json
import pickle
import re

import pytest

from optserve import errors
from optserve.wire import problems


def camel(slug):
    return "".join(word.capitalize() for word in slug.split("-"))


@pytest.mark.parametrize("problem", problems.ALL, ids=lambda problem: problem.slug)
def test_every_problem_of_the_wire_has_its_class(problem):
    raised = errors.from_reply(problem.status, json.dumps({"type": problem.urn, "detail": "mend it"}).encode())
    assert type(raised).__name__ == camel(problem.slug)
    assert (raised.type, raised.status, raised.title) == (problem.urn, problem.status, problem.title)
    assert str(raised) == "mend it"


def test_the_tree_in_the_description_is_the_real_one():
    drawn = re.findall(r"─ (\w+)", errors.__doc__)
    real = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert sorted(drawn) == sorted(real - {"OptserveError"})


def test_members_of_a_problem_are_fields_and_properties():
    body = {"type": problems.STEP_CONFLICT.urn, "status": 409, "detail": "send step 7", "next_step": 7, "self": 1}
    raised = errors.from_reply(409, json.dumps(body).encode())
    assert raised.next_step == 7
    assert raised.fields == {"next_step": 7}
    with pytest.raises(errors.StepConflict, match="send step 7"):
        raise raised


def test_an_unknown_type_is_a_plain_problem():
    raised = errors.from_reply(418, b'{"type": "urn:optserve:problem:teapot", "title": "Tea", "detail": "no coffee"}')
    assert type(raised) is errors.ProblemError
    assert (raised.type, raised.status, raised.title, raised.detail) == (
        "urn:optserve:problem:teapot", 418, "Tea", "no coffee",
    )  # fmt: skip


@pytest.mark.parametrize("content", [b"<html>Bad gateway</html>", b"[1]", b"\xff\xfe", b""])
def test_a_reply_that_is_no_problem_document_is_an_error_too(content):
    raised = errors.from_reply(502, content)
    assert type(raised) is errors.ProblemError
    assert raised.status == 502
    assert "502" in str(raised)


def test_the_description_is_the_default_message():
    assert str(errors.SessionNotFound()) == errors.SessionNotFound.__doc__
    assert errors.SessionNotFound().status == 404


def test_errors_cross_process_borders():
    raised = errors.GradientsInvalid("NaN", parameter="w", index=[1, 2])
    copy = pickle.loads(pickle.dumps(raised))
    assert (type(copy), str(copy), copy.parameter, copy.index) == (errors.GradientsInvalid, "NaN", "w", [1, 2])
