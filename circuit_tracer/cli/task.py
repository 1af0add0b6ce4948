"""A task: a command that ends well, whatever happens in it.

    0     done
    1     the work failed: a damaged file, a full disk, a fault of ours
    2     the words were wrong: an option, a prompt, a token
    130   interrupted
    143   told to end (SIGTERM)

Messages go to stderr in one piece, without a traceback unless `--debug` is given. A reader that
goes away early (`trace … | head`) is no error worth a word.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from circuit_tracer.errors import CircuitTracerError

LONGEST = 400
"""Letters of a command's first sentence."""


class Terminated(BaseException):
    """SIGTERM came."""


class Task(click.Command):
    """A click command whose exceptions become exit statuses and messages."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        speak_utf8()
        return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        debug = bool(ctx.params.get("debug"))
        try:
            with terminable():
                result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
            return result
        except (click.ClickException, click.exceptions.Exit):
            raise
        except KeyboardInterrupt:
            stop(ctx, "interrupted; nothing was left half-written", 130)
        except Terminated:
            stop(ctx, "ended from outside; nothing was left half-written", 143)
        except BrokenPipeError:
            silence_stdout()
            ctx.exit(1)
        except CircuitTracerError as error:
            if debug:
                raise
            stop(ctx, str(error), error.exit_status)
        except Exception as error:
            if debug:
                raise
            stop(ctx, f"{unexpected(error)}\nrun again with --debug to see where it happened", 1)


class Tasks(click.Group):
    """A group whose help says what each of its commands does, and does not cut it short."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        rows = [
            (name, command.get_short_help_str(limit=LONGEST))
            for name, command in commands.items()
            if command is not None and not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """While inside, SIGTERM raises, so that what was begun is taken away as after an interrupt.

    Not in a process of torchrun: it may wait for others where no Python runs, and has to end there.
    """

    def end(*_: object) -> NoReturn:
        raise Terminated

    if "RANK" in os.environ or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stop(ctx: click.Context, message: str, status: int) -> NoReturn:
    """End the program: the message on stderr after the program's name, and the status."""
    name = ctx.find_root().info_name or "trace"
    click.echo(f"{name}: {message}", err=True)
    ctx.exit(status)


def unexpected(error: BaseException) -> str:
    """One line for an exception nobody planned for."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"cannot write {error.filename or 'to standard output'}: {error.strerror}"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def speak_utf8() -> None:
    """Make stdout and stderr UTF-8 whatever the locale: prompts and tokens are in any language."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def silence_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush has nowhere to complain."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a file, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
