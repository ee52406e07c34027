"""What a request is refused with: one table of status codes for every surface."""

from __future__ import annotations

import math


class Refusal(Exception):
    """A request that is not answered, and why.

    `status` is of HTTP. `code` is for programs and never changes; the message is for people, and never holds a text.
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
        """As OpenAI's clients read it; `message` stands outside too, where Cohere's look for it."""
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
"""Every status that is not 200, and OpenAI's word for it."""


def bad_request(message: str, param: str | None = None, code: str = "invalid_request") -> Refusal:
    """400: the request would fail again, the same way, on every replica."""
    return Refusal(400, code, message, param)


def too_large(message: str, param: str | None = None, code: str = "request_too_large") -> Refusal:
    """413: more than this server takes at once; less of it would do."""
    return Refusal(413, code, message, param)


def check_size(tokens: int, limit: int) -> None:
    """Refuse a request that is larger than any may be."""
    if tokens > limit:
        raise too_large(f"the request has at least {tokens} tokens and {limit} are allowed; send it in parts", "input")


def overloaded(retry_after_s: float) -> Refusal:
    """429: too much waits already."""
    return Refusal(
        429,
        "overloaded",
        f"too much is waiting already; try again in {retry_after_s:.3g} s",
        retry_after_s=retry_after_s,
    )


def over_limit(key: str, limit: int, retry_after_s: float) -> Refusal:
    """429: a key has used up its tokens of this minute."""
    message = f"the key {key!r} has used its {limit} tokens a minute; try again in {retry_after_s:.3g} s"
    return Refusal(429, "rate_limit_exceeded", message, retry_after_s=retry_after_s)


def unavailable(message: str) -> Refusal:
    """503: this replica is about to be replaced; another one, or it a little later, will answer."""
    return Refusal(503, "unavailable", message, retry_after_s=1.0)
