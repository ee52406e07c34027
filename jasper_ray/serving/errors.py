"""Refusals: one table of status codes for every surface; and errors as logs may show them."""

from __future__ import annotations

import math
import traceback


class Refusal(Exception):
    """A request that is not answered, and the reason.

    `status` is the HTTP status. `code` is for programs and never changes. The message is for people and never quotes a
    text of the request.
    """

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, object]:
        """The error as OpenAI's clients read it; Cohere's look for the outer `message`."""
        error = {"message": self.message, "type": TYPES[self.status], "param": self.param, "code": self.code}
        return {"error": error, "message": self.message}

    @property
    def headers(self) -> dict[str, str]:
        if self.status == 401:
            return {"www-authenticate": "Bearer"}
        if self.retry_after_s is None:
            return {}
        seconds = max(self.retry_after_s, 0.001)
        return {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}


TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable",
}
"""Every status other than 200, with OpenAI's name for it."""


def bad_request(message: str, param: str | None = None, code: str = "invalid_request") -> Refusal:
    """400: the request would fail the same way on every replica."""
    return Refusal(400, code, message, param)


def too_large(message: str, param: str | None = None, code: str = "request_too_large") -> Refusal:
    """413: the request is above a limit."""
    return Refusal(413, code, message, param)


def check_size(tokens: int, limit: int) -> None:
    """Refuse a request with more tokens than any request may have."""
    if tokens > limit:
        raise too_large(f"the request has at least {tokens} tokens and {limit} are allowed; split it", "input")


def overloaded(retry_after_s: float) -> Refusal:
    """429: the queue or the memory for bodies is full."""
    message = f"the server is overloaded; try again in {retry_after_s:.3g} s"
    return Refusal(429, "overloaded", message, retry_after_s=retry_after_s)


def over_limit(key: str, limit: int, retry_after_s: float) -> Refusal:
    """429: a key has used its tokens of this minute."""
    message = f"the key {key!r} has used its {limit} tokens per minute; try again in {retry_after_s:.3g} s"
    return Refusal(429, "rate_limit_exceeded", message, retry_after_s=retry_after_s)


def unavailable(message: str) -> Refusal:
    """503: this replica is stopping or will be replaced; another one answers."""
    return Refusal(503, "unavailable", message, retry_after_s=1.0)


def safe_traceback(error: BaseException) -> str:
    """Format an error for a log: files, lines, functions and classes, with the errors that caused it.

    Messages and values are omitted, since they may quote a user's text.
    """
    parts: list[str] = []
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(link.__traceback__)]
        lines = [f'  File "{code.co_filename}", line {line}, in {code.co_name}' for code, line in frames]
        parts.insert(0, "\n".join([*lines, type(link).__name__]))
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return "\n".join(parts)
