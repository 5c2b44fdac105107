"""Work in threads: the results and errors of a plain loop, a bound on what waits, a clean stop."""

import threading
import time

import pytest

from iumad.data.parallel import in_order


def slow_square(number: int) -> int:
    time.sleep(0.001 * (number % 3))  # so that later ones can be ready earlier
    return number**2


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order(workers):
    assert list(in_order(slow_square, range(20), workers)) == [n**2 for n in range(20)]
    assert list(in_order(slow_square, [], workers)) == []


def test_other_threads_do_the_work():
    makers = set(in_order(lambda _n: threading.get_ident(), range(20), 4))
    assert threading.get_ident() not in makers


def test_no_more_than_the_bound_is_made_ahead():
    begun: list[int] = []
    results = in_order(begun.append, range(100), workers=2)
    next(results)
    time.sleep(0.05)  # long enough for all that may run
    assert 1 <= len(begun) <= 5  # twice the workers and the one that was read
    results.close()


def test_an_error_comes_at_its_place_and_stops_the_rest():
    begun: list[int] = []

    def fail_at_three(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise ValueError("three")
        return number

    results = in_order(fail_at_three, range(1000), workers=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(begun) <= 8
    assert not [t for t in threading.enumerate() if t.name.startswith("in-order")]


def test_closing_waits_for_what_was_begun_only():
    begun: list[int] = []
    done: list[int] = []

    def slow(number: int) -> None:
        begun.append(number)
        time.sleep(0.01)
        done.append(number)

    results = in_order(slow, range(1000), workers=2)
    next(results)
    results.close()
    assert sorted(begun) == sorted(done)
    assert len(done) <= 5
    assert not [t for t in threading.enumerate() if t.name.startswith("in-order")]
