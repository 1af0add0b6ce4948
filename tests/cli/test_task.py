"""How a command ends: status and message, for everything that can happen in it."""

from __future__ import annotations

import errno
import os
import signal
import time

import click
import pytest
from click.testing import CliRunner

from circuit_tracer import errors, files
from circuit_tracer.cli import options
from circuit_tracer.cli.task import Task, unexpected


def ending(raised: BaseException | None, *arguments: str):
    """The result of a command that raises `raised`."""

    @click.command(cls=Task, name="trial")
    @options.debug
    def trial(debug: bool) -> None:
        click.echo("working")
        if raised is not None:
            raised_now = raised
            raise raised_now

    return CliRunner().invoke(trial, arguments)


@pytest.mark.parametrize(
    "raised, status",
    [
        (None, 0),
        (errors.InputError("no such token"), 2),
        (errors.ModelError("no such family"), 1),
        (errors.TranscoderError("wrong width"), 1),
        (errors.GraphFileError("truncated"), 1),
        (errors.OutputError("disk full"), 1),
        (errors.MemoryBudgetError("too large"), 1),
        (RuntimeError("a fault of ours"), 1),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 1),
    ],
)
def test_statuses(raised, status):
    result = ending(raised)
    assert result.exit_code == status
    assert "Traceback" not in result.output


def test_our_errors_say_what_they_say():
    assert ending(errors.InputError("no such token")).stderr == "trial: no such token\n"


def test_a_fault_of_ours_is_one_line_and_a_hint():
    first, second = ending(RuntimeError("two\nlines")).stderr.splitlines()
    assert first == "trial: RuntimeError: two lines"
    assert "--debug" in second


def test_an_interruption_promises_nothing_is_half_written():
    assert "half-written" in ending(KeyboardInterrupt()).stderr


def test_who_is_told_to_end_takes_away_what_was_begun(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)  # torchrun's processes end at once
    before = signal.getsignal(signal.SIGTERM)

    @click.command(cls=Task, name="trial")
    def trial() -> None:
        with files.replacing(tmp_path / "page.html") as place:
            place.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    result = CliRunner().invoke(trial)
    assert (result.exit_code, list(tmp_path.iterdir())) == (143, [])
    assert "half-written" in result.stderr
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_full_disk_behind_standard_output_is_said_in_words():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "cannot write to standard output: No space left" in ending(full).stderr


def test_a_reader_that_leaves_is_not_talked_about():
    assert ending(BrokenPipeError()).stderr == ""


@pytest.mark.parametrize("raised", [errors.ModelError("x"), RuntimeError("x")])
def test_debug_lets_the_traceback_through(raised):
    assert ending(raised, "--debug").exception is raised


def test_unknown_options_are_wrong_words():
    assert ending(None, "--nonsense").exit_code == 2


def test_an_exception_without_words_has_its_name():
    assert unexpected(MemoryError()) == "MemoryError"
