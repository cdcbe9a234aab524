import threading
import time

import pytest

from data.workers import ahead


def num_helpers():
    return sum(thread.name == "data-ahead" for thread in threading.enumerate())


def test_results_in_order_whatever_takes_longer():
    def slow_first(item):
        time.sleep(0.05 if item == 0 else 0)
        yield from [(item, 0), (item, 1)]

    results = list(ahead.concatenated(slow_first, range(5), num_threads=3, depth=1))
    assert results == [(item, n) for item in range(5) for n in range(2)]


def test_works_ahead_but_no_further_than_allowed():
    made = []

    def endless(item):
        n = 0
        while True:
            made.append((item, n))
            yield n
            n += 1

    stream = ahead.concatenated(endless, range(10), num_threads=2, depth=3)
    next(stream)
    time.sleep(0.5)
    # One was taken from the first item, 3 wait for each of two, 1 more each waits for a place.
    assert len([n for item, n in made if item == 0]) == 5
    assert len([n for item, n in made if item == 1]) == 4
    assert not [n for item, n in made if item > 1]
    stream.close()
    deadline = time.time() + 5
    while num_helpers() and time.time() < deadline:
        time.sleep(0.02)
    assert not num_helpers()


def test_an_error_comes_when_it_is_its_turn():
    def make(item):
        yield item
        if item == 1:
            raise KeyError("broken")

    stream = ahead.concatenated(make, range(3), num_threads=2, depth=2)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(KeyError, match="broken"):
        next(stream)
