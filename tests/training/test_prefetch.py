"""One item ahead: asked for at once, in order, and what goes wrong is raised where the item would have come."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from jasper_ray.training.stage import prefetch


def test_the_first_item_is_asked_for_before_anyone_needs_it() -> None:
    asked = threading.Event()

    def items() -> Iterator[int]:
        asked.set()
        yield 1

    coming = prefetch(items())
    assert asked.wait(timeout=10)
    assert list(coming) == [1]


def test_all_items_come_in_order_and_no_more_than_one_is_made_early() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            yield number

    for used, item in enumerate(prefetch(items())):
        assert item == used
        assert len(made) <= used + 2


def test_an_error_comes_in_the_place_of_its_item() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("the second one")

    coming = prefetch(items())
    assert next(coming) == 1
    with pytest.raises(ValueError, match="the second one"):
        next(coming)
