"""Images given by URL, fetched from public addresses only."""

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
    """Return whether an IP address is public: no loopback, private or link-local network, no metadata service, and no
    IPv6 address that a gateway would turn into one of these."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None) or ip
    return inner.is_global and not inner.is_multicast and not inner.is_reserved


async def fetch(url: str, max_bytes: int, allowed: Callable[[str], bool] = is_public) -> bytes:
    """Fetch an http or https URL, without following redirects.

    Raises:
        Refusal: the URL is invalid, not public, not found, or its content is too large.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError as error:
        raise not_fetched("has an invalid URL") from error
    if parts.scheme not in ("http", "https") or not host or parts.username:
        raise not_fetched("is neither a data URI nor an http or https URL")
    connector = aiohttp.TCPConnector(socket_factory=sockets(allowed))
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            return await body_of(answer, max_bytes)
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
        raise not_fetched(f"could not be fetched ({type(error).__name__})") from error


def sockets(allowed: Callable[[str], bool]) -> Callable[[Any], socket.socket]:
    """Make sockets to allowed addresses only. The check sees the address of the connection itself, so no spelling of
    the host and no later change of its DNS record evades it."""

    def checked(info: Any) -> socket.socket:
        family, kind, protocol, _, address = info
        if not allowed(address[0]):
            raise OSError("not a public address")
        return socket.socket(family, kind, protocol)

    return checked


async def body_of(answer: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Read the body, up to its limit."""
    if answer.status != 200:
        raise not_fetched(f"could not be fetched (status {answer.status})")
    parts: list[Any] = []
    size = 0
    async for part in answer.content.iter_chunked(1 << 16):
        size += len(part)
        if size > max_bytes:
            raise too_large(f"an image has more than {max_bytes} bytes", "images", "image_too_large")
        parts.append(part)
    return b"".join(parts)


def not_fetched(reason: str) -> Refusal:
    return bad_request(f"an image {reason}", "images", "image_not_fetched")
