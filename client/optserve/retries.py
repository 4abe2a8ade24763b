"""Which requests are sent again, when, and how often.

Sent again after a lost connection, and after 502, 503 and 504, is what the server does only once however often it
arrives: GET, PUT, PATCH and DELETE; a POST that creates, because it carries an Idempotency-Key; one that restores a
checkpoint, because it ends in the same state; a step, because the server answers the last step sent again with the same
bytes from memory. A request the server turned away unread (429 and 503
with `Retry-After`), or that never left (connection refused), may always be sent again.
"""

import random
from dataclasses import dataclass, replace

from optserve.errors import ConnectionFailed
from optserve.exchange import ConnectionLost, Exchange, Request, Response

FIRST_DELAY = 0.25  # seconds; doubled after each try
LONGEST_DELAY = 8.0  # seconds, of the back-off
UNANSWERED_LIMIT = 5  # of a server that has never answered: perhaps its address is wrong, and somebody waits to hear so
LONGEST_RETRY_AFTER = 60.0  # seconds; a server that asks for more is not waited for

_NOT_FOUND = 404
_TOO_MANY_REQUESTS = 429
_UNAVAILABLE = 503
_PASSING = frozenset({502, 503, 504})


@dataclass(slots=True)
class Retries:
    """How often a request is sent again (`limit`), and the `url` that the error names when it was in vain.

    `answered`: whether the server has ever answered. Until then it is asked fewer times.
    """

    limit: int
    url: str
    answered: bool = False

    def send(self, request: Request) -> Exchange[Response]:
        """Send `request` until it is answered. The response may still be an error.

        Raises:
            ConnectionFailed: no response after every try, or the request is not one to send twice.
        """
        lost = False
        for tries in range(1, self.limit + 2):
            last = tries > (self.limit if self.answered else min(self.limit, UNANSWERED_LIMIT))
            try:
                response = yield request
            except ConnectionLost as loss:
                if last or (loss.sent and not request.repeatable):
                    raise ConnectionFailed(self._message(request, loss, tries)) from loss
                lost = lost or loss.sent
                delay = backoff(tries)
            else:
                self.answered = True
                if lost and request.method == "DELETE" and response.status == _NOT_FOUND:
                    return replace(response, status=204, content=bytearray())  # a lost try has deleted it
                wait = _wait(request, response, tries)
                if last or wait is None:
                    return response
                delay = wait
            request = replace(request, delay=delay)
        raise AssertionError("the last try returns or raises")

    def _message(self, request: Request, loss: ConnectionLost, tries: int) -> str:
        times = "once" if tries == 1 else f"{tries} times"
        mend = "is this still the right address?" if loss.sent else "is the server running? `optserve serve` starts one"
        return f"{self.url} did not answer {request.method} {request.path} ({loss}; tried {times}): {mend}"


def backoff(tries: int) -> float:
    """Seconds to wait after so many tries: exponential, with jitter so that clients do not come back all at once."""
    return min(FIRST_DELAY * 2.0 ** (tries - 1), LONGEST_DELAY) * random.uniform(0.5, 1.0)


def retry_after(response: Response) -> float | None:
    """The seconds of a `Retry-After` header; None where there is none, or it is a date."""
    try:
        seconds = float(response.headers.get("Retry-After", ""))
    except ValueError:
        return None
    return seconds if seconds >= 0 else None


def _wait(request: Request, response: Response, tries: int) -> float | None:
    """Seconds until the request is sent again; None: the response is final."""
    if response.status in (_TOO_MANY_REQUESTS, _UNAVAILABLE):
        seconds = retry_after(response)
        if seconds is not None:
            return seconds + backoff(1) if seconds <= LONGEST_RETRY_AFTER else None
    if response.status in _PASSING and request.repeatable:
        return backoff(tries)
    return None
