"""A recorded run for a terminal: tables, a timeline of each scope, and advice. Needs rich."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from autobatch.advice import advise
from autobatch.recorded.file import Run
from autobatch.report import FlushRecord, Reason, ScopeRecord, counted

_TIMELINE = 24  # characters
_SHORT_TIMELINE = 14
_WIDE = 100  # characters of a terminal with room for the long one
_FLUSHES = 40  # rows of a scope
_SHOWN = 3  # commands in a row


def show(run: Run, console: Console, *, worst: int = 10) -> None:
    """Print a recorded run.

    Args:
        run: what to print.
        console: where to.
        worst: how many scopes to print with their flushes: those with most round trips, and of
            those with the same name one.
    """
    console.print(_heading(run))
    console.print(_scopes(run.scopes))
    by_name: dict[str, ScopeRecord] = {}
    for scope in sorted(run.scopes, key=lambda scope: -scope.round_trips):
        by_name.setdefault(scope.name, scope)
    for scope in list(by_name.values())[:worst]:
        console.print(_flushes(scope, console))
        for advice in advise(scope):
            console.print(Text(f"{'->' if console.options.ascii_only else '→'} {advice}"))


def _heading(run: Run) -> str:
    commands = sum(len(flush.commands) for flush in run.flushes)
    round_trips = sum(flush.round_trips for flush in run.flushes)
    return (
        f"{counted(len(run.scopes), 'scope')}, {counted(commands, 'command')} in "
        f"{counted(round_trips, 'round trip')}: {commands - round_trips} saved"
    )


def _scopes(scopes: Iterable[ScopeRecord]) -> Table:
    """Return a row for each name: how often, and what it took."""
    table = Table(title="Scopes", title_justify="left")
    table.add_column("scope", overflow="fold")
    for name in ("times", "commands", "round trips", "a time", "saved", "waited"):
        table.add_column(name, justify="right")
    by_name: dict[str, list[ScopeRecord]] = {}
    for scope in scopes:
        by_name.setdefault(scope.name, []).append(scope)
    for name, same in sorted(by_name.items(), key=lambda one: -_round_trips(one[1])):
        waited = sum(flush.duration for scope in same for flush in scope.flushes)
        table.add_row(
            escape(name),
            str(len(same)),
            str(sum(scope.commands for scope in same)),
            str(_round_trips(same)),
            f"{_round_trips(same) / len(same):.1f}",
            str(sum(scope.saved for scope in same)),
            f"{1000 * waited:.1f} ms",
        )
    return table


def _round_trips(scopes: Iterable[ScopeRecord]) -> int:
    return sum(scope.round_trips for scope in scopes)


def _flushes(scope: ScopeRecord, console: Console) -> Table:
    """Return a row for each flush, with its place on the scope's timeline."""
    flushes = list(scope.flushes)
    end = max([scope.closed, *(flush.finished for flush in flushes)])
    title = f"{escape(scope.name)}: {1000 * (end - scope.opened):.1f} ms"
    table = Table(title=title, title_justify="left", expand=True, show_lines=True)
    width = _TIMELINE if console.width >= _WIDE else _SHORT_TIMELINE
    signs = (".", "#") if console.options.ascii_only else ("·", "█")
    table.add_column("when", no_wrap=True, width=width + 1)
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold", ratio=2)
    table.add_column("commands", overflow="fold", ratio=3)
    for flush in flushes[:_FLUSHES]:
        table.add_row(
            _bar(flush, scope.opened, end, width, signs),
            f"{1000 * flush.duration:.2f}",
            escape(_why(flush)),
            escape(_commands(flush)),
        )
    if len(flushes) > _FLUSHES:
        table.add_row("", "", f"and {len(flushes) - _FLUSHES} more")
    return table


def _bar(flush: FlushRecord, opened: float, end: float, width: int, signs: tuple[str, str]) -> Text:
    """Return the timeline: dots while its first command waited, blocks while it was under way."""
    scale = width / max(end - opened, 1e-9)
    called, started, finished = (
        min(width - 1, max(0, int((moment - opened) * scale)))
        for moment in (flush.started - flush.queued, flush.started, flush.finished)
    )
    style = "red" if flush.errors else "yellow" if flush.reason is Reason.ALONE else "green"
    waiting, under_way = signs
    bar = Text(" " * called + waiting * (started - called))
    bar.append(under_way * (finished - started + 1), style)
    return bar


def _why(flush: FlushRecord) -> str:
    use = f" ({flush.use})" if flush.use is not None else ""
    place = "" if flush.place is None else f"\n{flush.place}"
    return f"{flush.reason}{use}{place}"


def _commands(flush: FlushRecord) -> str:
    shown = [
        f"{command}" if command.place is None else f"{command}  {command.place}"
        for command in flush.commands[:_SHOWN]
    ]
    if len(flush.commands) > _SHOWN:
        shown.append(f"and {len(flush.commands) - _SHOWN} more")
    shown += [f"{command}: {command.error}" for command in flush.errors]
    return "\n".join(shown)
