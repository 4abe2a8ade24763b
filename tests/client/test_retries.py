"""What is sent again, when, and how often: the generator alone, so that any fault can be put before it."""

import pytest

from optserve import retries
from optserve.errors import ConnectionFailed
from optserve.exchange import ConnectionLost, Request, Response
from optserve.retries import Retries

GET = Request("GET", "/optimizers")
POST = Request("POST", "/raw", repeatable=False)
LOST = ConnectionLost("reset by peer", sent=True)
REFUSED = ConnectionLost("connection refused", sent=False)


def reply(status=200, content=b"", **headers):
    return Response(status, {name.replace("_", "-"): value for name, value in headers.items()}, bytearray(content))


def play(request, *events, limit=5, answered=True):
    """Answer each request with the next event; the requests that were sent, and how it ended."""
    operation = Retries(limit, "http://server", answered).send(request)
    sent = [next(operation)]
    for event in events:
        try:
            sent.append(operation.throw(event) if isinstance(event, ConnectionLost) else operation.send(event))
        except StopIteration as end:
            return sent, end.value
        except ConnectionFailed as error:
            return sent, error
    raise AssertionError("it would send once more")


@pytest.mark.parametrize("fault", [LOST, REFUSED, reply(502), reply(503), reply(504)])
def test_what_is_repeatable_is_sent_again_until_it_is_answered(fault):
    sent, response = play(GET, fault, fault, reply(200, b"{}"))
    assert [(one.method, one.path) for one in sent] == [("GET", "/optimizers")] * 3
    assert response.content == b"{}"


def test_a_post_that_is_not_repeatable_is_not_sent_again_once_it_was_sent():
    sent, error = play(POST, LOST)
    assert len(sent) == 1
    assert isinstance(error, ConnectionFailed)


@pytest.mark.parametrize("fault", [REFUSED, reply(503, Retry_After="1"), reply(429, Retry_After="1")])
def test_a_request_that_the_server_has_not_taken_may_always_be_sent_again(fault):
    _, response = play(POST, fault, reply(201))
    assert response.status == 201


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_post_that_is_not_repeatable_and_may_have_been_taken_is_left_alone(status):
    _, response = play(POST, reply(status))
    assert response.status == status


@pytest.mark.parametrize("status", [400, 404, 409, 422, 500, 507])
def test_final_answers_are_not_asked_for_again(status):
    sent, response = play(GET, reply(status))
    assert len(sent) == 1
    assert response.status == status


def test_the_pauses_grow_with_jitter_up_to_a_limit(monkeypatch):
    spans = []
    monkeypatch.setattr(retries.random, "uniform", lambda low, high: spans.append((low, high)) or high)
    sent, _ = play(GET, *[LOST] * 8, reply(), limit=10)
    assert [one.delay for one in sent] == [0, 0.25, 0.5, 1, 2, 4, 8, 8, 8]
    assert spans == [(0.5, 1.0)] * 8


def test_a_server_that_never_answered_is_not_waited_for_long():
    sent, error = play(GET, *[REFUSED] * 6, limit=10, answered=False)
    assert len(sent) == 6
    assert isinstance(error, ConnectionFailed)


def test_a_server_that_has_answered_is_waited_for_while_it_is_started_again():
    retried = Retries(10, "http://server")
    first = retried.send(GET)
    next(first)
    with pytest.raises(StopIteration):
        first.send(reply())
    later = retried.send(GET)
    next(later)
    assert sum(later.throw(REFUSED).delay for _ in range(10)) > 20  # seconds


def test_retry_after_is_waited_for():
    sent, _ = play(GET, reply(429, Retry_After="7"), reply())
    assert 7 < sent[1].delay <= 7.5


@pytest.mark.parametrize("header", ["3600", "inf", "nan", "-1", "soon", ""])
def test_a_quota_that_is_not_free_soon_is_told_at_once(header):
    sent, response = play(GET, reply(429, Retry_After=header))
    assert len(sent) == 1
    assert response.status == 429


def test_after_the_last_try_the_error_names_the_address_and_what_to_do():
    sent, error = play(GET, *[REFUSED] * 3, limit=2)
    assert len(sent) == 3
    for part in ("http://server", "GET /optimizers", "connection refused", "3 times", "optserve serve"):
        assert part in str(error)
    assert isinstance(error, ConnectionError)


def test_after_the_last_try_an_error_that_was_answered_is_the_answer():
    _, response = play(GET, reply(503), reply(503, b"busy"), limit=1)
    assert response.content == b"busy"


def test_a_delete_whose_reply_was_lost_has_worked_when_nothing_is_there_any_more():
    delete = Request("DELETE", "/sessions/1")
    assert play(delete, LOST, reply(404))[1].status == 204
    assert play(delete, REFUSED, reply(404))[1].status == 404
    assert play(delete, reply(404))[1].status == 404
    assert play(GET, LOST, reply(404))[1].status == 404
