"""Progress in a terminal, and in a log file: one line a step, without control characters."""

import pytest

from mmret_tf.data import progress
from mmret_tf.data.progress import Progress, is_interactive


@pytest.mark.parametrize(
    ("total", "steps", "lines"),
    [
        (200, range(1, 201), [f"{done}/200 items" for done in range(20, 201, 20)]),
        (3, (1, 2, 3), ["1/3 items", "2/3 items", "3/3 items"]),
        (1000, (99, 100, 101, 950, 1000), ["100/1000 items", "950/1000 items", "1000/1000 items"]),
    ],
)
def test_a_log_file_gets_at_most_ten_plain_lines(total, steps, lines, capsys):
    assert not is_interactive()
    shown = Progress(total, "item")
    for done in steps:
        shown.update(done)
    assert capsys.readouterr().out.splitlines() == lines


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress, "is_interactive", lambda: True)
    shown = Progress(2, "item")
    shown.update(2)
    assert "2/2" in capsys.readouterr().out


def test_terminals_and_notebooks_are_interactive(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert is_interactive()
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert not is_interactive()
    monkeypatch.setitem(progress.sys.modules, "ipykernel", progress)
    assert is_interactive()
