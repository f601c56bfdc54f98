"""Items made in a thread: all of them, in order, with the errors of the thread."""

from __future__ import annotations

import threading
import time

import pytest

from pyro_contrastive.observed.background import in_background


def test_all_items_come_in_order():
    assert list(in_background(range(100), n_ahead=3)) == list(range(100))
    assert list(in_background([])) == []


def test_an_error_comes_when_its_item_would():
    def items():
        yield 1
        raise OSError("the disk is gone")

    found = in_background(items())
    assert next(found) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)


def test_the_thread_makes_no_more_than_it_may():
    made = []

    def items():
        for i in range(50):
            made.append(i)
            yield i

    found = in_background(items(), n_ahead=2)
    next(found)
    time.sleep(0.2)
    assert len(made) <= 4  # one used, two waiting, one in hand
    found.close()


def test_closing_ends_the_thread():
    before = threading.active_count()
    found = in_background(iter(int, 1))  # zeros without end
    next(found)
    assert threading.active_count() == before + 1
    found.close()
    assert threading.active_count() == before
