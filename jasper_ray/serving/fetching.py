"""Images from elsewhere, where a server is told to fetch them: from public addresses alone."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from jasper_ray.serving.errors import Refusal, bad_request, too_large

TIMEOUT_S = 10.0


class PublicResolver(AbstractResolver):
    """Names to addresses that belong to nobody's own network. The connection is made to what was checked, so that a
    name which changes its mind in between wins nothing."""

    def __init__(self) -> None:
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if not found or not all(is_public(one["host"]) for one in found):
            raise OSError("not a public address")
        return found

    async def close(self) -> None:
        await self._inner.close()


def is_public(address: str) -> bool:
    """Whether anyone may reach it: no loopback, no private or link-local network, no metadata service, and no IPv6
    address that a gateway would turn into one of these."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None) or found
    return inner.is_global and not inner.is_multicast and not inner.is_reserved


async def fetched(url: str, most: int, resolver: AbstractResolver | None = None) -> bytes:
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
    if looks_numeric(host) and not is_public(host):  # a resolver never sees these
        raise refused("lies at an address that is not public")
    connector = aiohttp.TCPConnector(resolver=resolver or PublicResolver(), use_dns_cache=False)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            return await body_of(answer, most)
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
        raise refused(f"could not be fetched ({type(error).__name__})") from error


def looks_numeric(host: str) -> bool:
    """Whether a host is written as a number rather than a name: `10.0.0.1`, `::1`, and forms such as `2130706433`."""
    return ":" in host or (host.replace(".", "").lower().removeprefix("0x").isalnum() and host[-1:].isdigit())


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
