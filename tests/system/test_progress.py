"""Progress on a terminal and in a log."""

import io
import re
import sys
import time

import pytest
from absl import logging

from tim_jax.system import logs, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so, for bars and for tqdm."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.Bar, "_time", staticmethod(lambda: now[0]), raising=False)
    return now


def stepped(clock, file, steps=200, seconds=1.0, **more):
    with progress.Bar(total=steps, desc="work", file=file, **more) as bar:
        bar._time = lambda: clock[0]
        bar.start_t = bar.last_print_t = clock[0]
        for i in range(steps):
            clock[0] += seconds
            bar.update()
            bar.set_postfix_str(f"loss {i}")
    return file.getvalue()


def test_a_log_gets_lines_at_intervals_and_no_carriage_return(clock):
    text = stepped(clock, io.StringIO())
    assert "\r" not in text and text.endswith("\n")
    counts = [int(re.search(r"(\d+)/200", line)[1]) for line in text.splitlines()]
    # By hand: 200 steps of a second, a line every 30 seconds, and the last.
    assert counts == [30, 60, 90, 120, 150, 180, 200]
    assert all(line.startswith("work: ") and "loss" in line for line in text.splitlines())


def test_a_log_of_short_work_has_one_line_or_none(clock):
    assert len(stepped(clock, io.StringIO(), steps=9).splitlines()) == 1
    assert stepped(clock, io.StringIO(), steps=9, leave=False) == ""


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_work_shows_its_first_figures_and_its_last(clock, steps):
    file = io.StringIO()
    with progress.Bar(total=steps, file=file) as bar:
        for i in range(steps):
            bar.update()
            bar.show(f"loss {i}")
    lines = file.getvalue().splitlines()
    assert [re.search(r"(\d+)/.*, loss (\d+)\]", line).groups() for line in lines] == [
        (str(i + 1), str(i)) for i in sorted({0, steps - 1})
    ]


def test_a_terminal_gets_a_bar(clock):
    assert stepped(clock, Terminal(), steps=9).count("\r") > 2


def test_a_message_stands_between_the_lines_of_a_log(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    logs.install()
    with progress.Bar(total=2) as bar:
        bar.update()
        logging.warning("step %d left out", 3)
        bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert "warning: step 3 left out" in lines and "" not in lines and sys.stderr is not None
    assert lines[-1].startswith("100% 2/2")


def test_nothing_is_written_where_a_bar_is_disabled():
    file = io.StringIO()
    with progress.Bar(total=3, file=file, disable=True) as bar:
        bar.update(3)
    assert file.getvalue() == ""


def test_an_iterable_is_counted(clock):
    file = io.StringIO()
    assert list(progress.Bar(range(5), desc="items", file=file)) == list(range(5))
    assert file.getvalue().startswith("items: 100% 5/5") and len(file.getvalue().splitlines()) == 1


def activity_of(file, monkeypatch, seconds, pieces=("one",), after=0.5):
    """What is written of pieces of work that take `seconds` each, with a tick whenever one second is over."""
    now, activity = [0.0], progress.Activity(pieces[0], len(pieces), after=after, file=file)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.threading.Thread, "start", lambda self: None)
    with activity:
        for piece in (*pieces[1:], None):
            for _ in range(seconds if isinstance(seconds, int) else next(seconds)):
                now[0] += 1
                activity._show()
            if piece is not None:
                activity.next(piece)
    return file.getvalue()


def test_what_cannot_be_counted_says_how_long_it_takes_and_how_much_is_left(monkeypatch):
    lines = activity_of(io.StringIO(), monkeypatch, 2, ("compiling a", "compiling b", "compiling c")).splitlines()
    # By hand: two seconds each.
    assert lines == [
        "compiling a (1 of 3) … 1 s", "compiling a (1 of 3) … 2 s",
        "compiling b (2 of 3) … 2 s, about 4 s left", "compiling b (2 of 3) … 3 s, about 3 s left",
        "compiling b (2 of 3) … 4 s, about 2 s left",
        "compiling c (3 of 3) … 4 s, about 2 s left", "compiling c (3 of 3) … 5 s, about 1 s left",
        "compiling c (3 of 3) … 6 s, about 0 s left", "compiling c (3 of 3): 6.0 s in all",
    ]  # fmt: skip


def test_what_takes_longer_than_what_was_before_does_not_promise_its_end(monkeypatch):
    lines = activity_of(io.StringIO(), monkeypatch, iter((1, 2, 2)), ("a", "b", "c")).splitlines()
    assert lines == [
        "a (1 of 3) … 1 s",
        "b (2 of 3) … 1 s, about 2 s left", "b (2 of 3) … 2 s, about 1 s left", "b (2 of 3) … 3 s, about 1 s left",
        "c (3 of 3) … 3 s, about 2 s left", "c (3 of 3) … 4 s, about 0 s left", "c (3 of 3) … 5 s",
        "c (3 of 3): 5.0 s in all",
    ]  # fmt: skip


def test_on_a_terminal_the_line_is_renewed(monkeypatch):
    assert activity_of(Terminal(), monkeypatch, 2) == "\rone … 1 s\rone … 2 s\rone: 2.0 s\n"


def test_a_note_stays_above_the_line_that_is_renewed(monkeypatch):
    file = Terminal()
    monkeypatch.setattr(progress.threading.Thread, "start", lambda self: None)
    with progress.Activity("checking", file=file) as activity:
        activity._show()
        activity.note("right")
    assert file.getvalue().startswith("\rchecking … 0 s\rright         \n\rchecking: ")
    progress.Activity("checking", disable=True, file=file).note("wrong")
    assert "wrong" not in file.getvalue()


@pytest.mark.parametrize("after, pause, said", [(30.0, 0.0, 0), (0.0, 0.2, 2)])
def test_what_is_quick_is_not_mentioned(after, pause, said):
    file = io.StringIO()
    with progress.Activity("compiling", after=after, file=file):
        time.sleep(pause)
    assert len(file.getvalue().splitlines()) == said


def test_a_bar_is_drawn_below_the_lines_of_an_activity():
    file = Terminal()
    with progress.Bar(total=2, file=file) as bar:
        with progress.Activity("compiling", after=0.0, file=file):
            time.sleep(0.2)
        bar.update()
    assert re.search(r"compiling … 0 s\n.*0/2.*compiling: 0\.\d s\n.*0/2", file.getvalue(), re.S), "whole lines"
