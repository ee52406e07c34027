"""Images from elsewhere, where a server is told to fetch them: from public addresses alone."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from jasper_ray.serving.errors import Refusal, bad_request, too_large

TIMEOUT_S = 10.0


def is_public(address: str) -> bool:
    """Whether anyone may reach it: no loopback, no private or link-local network, no metadata service, and no IPv6
    address that a gateway would turn into one of these."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None) or found
    return inner.is_global and not inner.is_multicast and not inner.is_reserved


async def fetched(url: str, most: int, allowed: Callable[[str], bool] = is_public) -> bytes:
    """What lies at an http or https address, at most `most` bytes; redirects are not followed.

    Raises:
        Refusal: it is no such address, not a public one, not there, or too large.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError as error:
        raise refused("is no address") from error
    if parts.scheme not in ("http", "https") or not host or parts.username:
        raise refused("is neither a data URI nor an address of http or https")
    connector = aiohttp.TCPConnector(socket_factory=sockets(allowed))
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            return await body_of(answer, most)
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
        raise refused(f"could not be fetched ({type(error).__name__})") from error


def sockets(allowed: Callable[[str], bool]) -> Callable[[Any], socket.socket]:
    """Sockets to allowed addresses alone. What is judged is the address that the connection goes to, however a host
    was written, and whatever its name stands for a moment later."""

    def checked(info: Any) -> socket.socket:
        family, kind, protocol, _, address = info
        if not allowed(address[0]):
            raise OSError("not a public address")
        return socket.socket(family, kind, protocol)

    return checked


async def body_of(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """The whole body."""
    if answer.status != 200:
        raise refused(f"could not be fetched (status {answer.status})")
    parts: list[Any] = []
    size = 0
    async for part in answer.content.iter_chunked(1 << 16):
        size += len(part)
        if size > most:
            raise too_large(f"an image has more than {most} bytes", "images", "image_too_large")
        parts.append(part)
    return b"".join(parts)


def refused(what: str) -> Refusal:
    return bad_request(f"an image {what}", "images", "image_not_fetched")
