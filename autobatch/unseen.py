"""Errors that nobody has looked at: raised where a scope ends, or logged where nobody is left."""

from __future__ import annotations

import asyncio
import logging

from autobatch.command import Command
from autobatch.promise import Failure

logger = logging.getLogger("autobatch")
_SHOWN = 20


def surface(failures: list[Failure], error: BaseException | None = None) -> None:
    """Raise the first of the errors that nobody has looked at, the rest as its notes.

    Args:
        failures: in program order.
        error: what already ends the scope, if anything does: it gets all of them as notes.
    """
    if not failures:
        return
    if isinstance(error, (asyncio.CancelledError, GeneratorExit, SystemExit)):
        # Nobody will see its notes.
        log_unseen(failures, f"a scope that was ended by {type(error).__name__}")
        return
    first = failures[0].error if error is None else error
    rest = failures if error is not None else failures[1:]
    if error is None:
        failures[0].look()
    for failure in rest[:_SHOWN]:
        first.add_note(f"Also failed: {failure.summary()}")
    if len(rest) > _SHOWN:
        first.add_note(f"And {len(rest) - _SHOWN} more commands failed.")
    if error is None:
        failures[0].throw()


def log_unseen(failures: list[Failure], where: str) -> None:
    """Log errors that nobody has looked at, where they cannot be raised any more."""
    for failure in failures:
        logger.error("unseen error in %s: %s", where, failure.summary(), exc_info=failure.for_log())


def surface_at_once(commands: list[Command]) -> None:
    """Raise what the call of some commands has failed with, as redis-py does: without batching."""
    failures = [command.outcome for command in commands if type(command.outcome) is Failure]
    for failure in failures:
        failure.seen = True
    surface(failures)


def report_stray(loop: asyncio.AbstractEventLoop, failure: Failure) -> None:
    """Hand an error over to the exception handler of its event loop."""
    if loop.is_closed():
        log_unseen([failure], "an event loop that has ended")
    else:
        message = f"nobody looked at the error of a Redis command: {failure.summary()}"
        context = {"message": message, "exception": failure.for_log()}
        loop.call_soon_threadsafe(loop.call_exception_handler, context)
