"""Progress bars: shown on a terminal after a while, never elsewhere, and gone without a trace afterwards."""

import threading
import time

import pytest

from torchquant import progress
from torchquant.progress import ProgressBar


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(progress, "SHOW_AFTER_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def test_a_long_call_without_steps_has_a_bar(terminal, capsys):
    with ProgressBar("converting") as bar:
        wait_for(lambda: bar._task is not None)
    assert "converting" in capsys.readouterr().err
    assert progress._display is None


def test_bars_inside_one_another_share_the_screen(terminal, capsys):
    with ProgressBar("outer", total=2) as outer:
        outer.advance()
        wait_for(lambda: outer._task is not None)
        with ProgressBar("inner", total=3) as inner:
            wait_for(lambda: inner._task is not None)
            inner.advance(2)
            assert [task.completed for task in progress._display.tasks] == [1, 2]
        assert [task.description for task in progress._display.tasks] == ["outer"]
    assert progress._display is None
    assert "inner" in capsys.readouterr().err


def test_nothing_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SHOW_AFTER_SECONDS", 0.0)
    threads = threading.active_count()
    with ProgressBar("validating", total=1) as bar:
        assert threading.active_count() == threads
        bar.advance()
    assert capsys.readouterr() == ("", "")


def test_commands_write_lines_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SHOW_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.01)
    lines = []

    def two_lines():
        lines.extend(capsys.readouterr().err.splitlines())
        return len(lines) > 1

    with progress.plain_lines(), ProgressBar("validating: fresh processes", total=6) as bar, ProgressBar("loading"):
        bar.advance(2)
        wait_for(lambda: two_lines() and any("2 of 6" in line for line in lines))
    assert {line.rsplit(" ", 2)[0] for line in lines} >= {"validating: fresh processes: 2 of 6,", "loading:"}
    with ProgressBar("outside", total=1) as bar:
        assert bar._timer is None


def test_nothing_before_it_is_due_nor_after_an_error(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with pytest.raises(ValueError, match="broken"), ProgressBar("validating", total=1):
        raise ValueError("broken")
    assert capsys.readouterr() == ("", "")
    assert progress._display is None
