"""HTTP/1.1 clients that load a server: prepared requests over kept-alive connections, answers counted and timed.

The clients share the CPUs with the measured server, so they parse only the status and the end of an answer: some 20 µs
of a CPU for a request, where aiohttp's client takes 80.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

OK, BUSY = 200, 429
LOST = 0
"""Replaces the status when the connection broke or the answer was no HTTP."""
PAUSE_S = 0.05
"""Seconds that a client waits after any status but 200."""
BUFFER = 1 << 20
"""Bytes that a connection reads ahead."""


@dataclass(frozen=True)
class Address:
    """Host and port of a server."""

    port: int
    host: str = "127.0.0.1"


@dataclass(frozen=True)
class Reply:
    """The status of a request, and its times on the clock of `time.perf_counter`."""

    sent_s: float
    ended_s: float
    status: int


@dataclass
class Tally:
    """The replies that ended between `began_s` and `ended_s`."""

    began_s: float
    ended_s: float
    replies: list[Reply] = field(default_factory=list)

    @property
    def statuses(self) -> Counter[int]:
        """Replies by status."""
        return Counter(reply.status for reply in self.replies)

    @property
    def failed(self) -> int:
        """Replies other than 200."""
        return len(self.replies) - self.statuses[OK]

    @property
    def unexpected(self) -> int:
        """Replies other than 200 and 429, lost connections among them."""
        return self.failed - self.statuses[BUSY]

    @property
    def per_s(self) -> float:
        """Requests/s that were answered with 200."""
        return self.statuses[OK] / (self.ended_s - self.began_s)

    def percentile(self, share: float, status: int = OK) -> float:
        """Return the seconds within which that share of the replies with this status came, by nearest rank."""
        seconds = sorted(reply.ended_s - reply.sent_s for reply in self.replies if reply.status == status)
        return seconds[max(0, math.ceil(share * len(seconds)) - 1)] if seconds else math.nan


class Client:
    """One request at a time over one connection, which is reopened after it broke."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> Reply:
        """Send a request and wait for the end of its answer."""
        sent_s = time.perf_counter()
        try:
            reader, writer = await self._connected()
            writer.write(request)
            status = await read_answer(reader)
        except (OSError, EOFError, ValueError, IndexError, asyncio.LimitOverrunError):
            self.close()
            status = LOST
        return Reply(sent_s, time.perf_counter(), status)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if not self.reader or not self.writer or self.reader.at_eof():
            self.close()
            self.reader, self.writer = await asyncio.open_connection(self.address.host, self.address.port, limit=BUFFER)
        return self.reader, self.writer

    def close(self) -> None:
        """Close the connection at once, even if an answer is due."""
        if self.writer:
            self.writer.transport.abort()
        self.reader = self.writer = None


async def read_answer(reader: asyncio.StreamReader) -> int:
    """Read a whole answer and return its status.

    Raises:
        EOFError: the connection broke.
        ValueError, IndexError: this is no answer.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head.split(b" ", 2)[1])
    _, with_length, length = head.partition(b"\r\ncontent-length:")
    if with_length:
        await reader.readexactly(int(length.partition(b"\r")[0]))
    elif b"\r\ntransfer-encoding: chunked\r\n" in head:
        while size := int(await reader.readline(), 16):
            await reader.readexactly(size + 2)
        await reader.readline()
    else:
        raise ValueError("the answer has neither a length nor chunks")
    return status


def post(address: Address, path: str, body: object) -> bytes:
    """Build the bytes of a request with a JSON body."""
    data = json.dumps(body, ensure_ascii=False).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {address.host}:{address.port}\r\naccept: */*\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def closed_loop(
    address: Address, requests: Sequence[bytes], clients: int, seconds: float, warm_s: float = 0.0
) -> Tally:
    """Run clients that each ask again once they are answered; count for `seconds` after `warm_s`.

    All clients together take the requests in turn and start over at their end, so two servers get the same ones.
    """
    turn = itertools.cycle(requests)
    began_s = time.perf_counter() + warm_s
    tally = Tally(began_s, began_s + seconds)
    team = [Client(address) for _ in range(clients)]
    tasks = [asyncio.create_task(keep_asking(client, turn, tally)) for client in team]
    try:
        await asyncio.sleep(tally.ended_s - time.perf_counter())
    finally:
        await dismiss(team, tasks)
    return tally


async def keep_asking(client: Client, turn: Iterator[bytes], tally: Tally) -> None:
    """Run one client of a closed loop until it is cancelled."""
    while True:
        reply = await client.ask(next(turn))
        if tally.began_s <= reply.ended_s <= tally.ended_s:
            tally.replies.append(reply)
        if reply.status != OK:
            await asyncio.sleep(PAUSE_S)


async def dismiss(clients: Sequence[Client], tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel the tasks and close the connections."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for client in clients:
        client.close()


@dataclass
class Flood(Tally):
    """The replies to requests that did not wait for each other."""

    sent: int = 0
    unsent: int = 0
    """Requests that were skipped, since no connection was free."""


async def open_loop(address: Address, requests: Sequence[bytes], per_s: float, seconds: float, most_open: int) -> Flood:
    """Send requests at a fixed rate, over at most `most_open` connections; close those that still wait at the end."""
    turn = itertools.cycle(requests)
    began_s = time.perf_counter()
    flood = Flood(began_s, began_s + seconds)
    idle: list[Client] = []
    team: list[Client] = []
    tasks: set[asyncio.Task[None]] = set()

    async def ask(client: Client) -> None:
        reply = await client.ask(next(turn))
        flood.replies.append(reply)
        idle.append(client)

    due = 0
    while (now := time.perf_counter()) < flood.ended_s:
        while due <= (now - began_s) * per_s:
            due += 1
            if not idle and len(team) == most_open:
                flood.unsent += 1
                continue
            if not idle:
                team.append(Client(address))
                idle.append(team[-1])
            flood.sent += 1
            task = asyncio.create_task(ask(idle.pop()))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.sleep(0.001)
    await dismiss(team, list(tasks))
    return flood
