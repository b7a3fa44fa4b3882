"""benchmarks/harness.py: peers in processes of their own take turns; one that fails or is late is left out."""

import pathlib
import sys
import time

import pytest

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks"))

from harness import PeerProcesses  # noqa: E402


def counter(first):
    numbers = iter(range(first, 100))
    return lambda: next(numbers)


def late():
    time.sleep(60)


def broken():
    raise ValueError("no such library")


def test_peers_take_turns_and_say_so():
    said = []
    with PeerProcesses({"a": (counter, (1,)), "b": (counter, (10,))}, say=said.append) as peers:
        assert peers.alternate(2) == {"a": [1, 2], "b": [10, 11]}
    assert said == ["a gets ready", "b gets ready", "round 1 of 2", "round 2 of 2"]


def test_a_peer_that_fails_is_left_out_and_named():
    failures = {}
    with PeerProcesses({"good": (counter, (1,)), "broken": (broken, ())}, on_failure=failures.__setitem__) as processes:
        assert processes.alternate(1) == {"good": [1]}
    assert list(failures) == ["broken"] and "no such library" in failures["broken"]


def test_a_late_peer_is_left_out_and_named():
    failures = {}
    with PeerProcesses({"late": (late, ())}, on_failure=failures.__setitem__, time_limit=0.5) as processes:
        assert processes.alternate(1) == {}
    assert failures == {"late": "peer late was not ready after 0.5 s"}


def test_without_a_handler_a_late_peer_ends_the_run():
    with pytest.raises(RuntimeError, match="peer late was not ready after 0.5 s"):
        with PeerProcesses({"late": (late, ())}, time_limit=0.5):
            pass
