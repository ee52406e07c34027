"""One item ahead: what goes on in a thread while the last item is used."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """`items`, the next one always on its way in a thread of its own; the first is asked for at once, not when it is
    needed. What goes wrong in the thread is raised where the item would have come."""
    thread = ThreadPoolExecutor(1)
    done = object()
    coming = thread.submit(next, items, done)

    def drain() -> Iterator[Item]:
        nonlocal coming
        while (item := coming.result()) is not done:
            coming = thread.submit(next, items, done)
            yield item  # type: ignore[misc]
        thread.shutdown()

    return drain()
