"""The panel's page: each scope as a waterfall of its round trips. HTML and SVG, no script."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib.resources import files

from autobatch.advice import advise
from autobatch.report import CommandRecord, FlushRecord, Reason, ScopeRecord, counted

_WIDTH = 1000  # of the picture, in its own units: the browser stretches it
_HEIGHT = 640  # of a picture with many lanes, in pixels
_LANES = (16, 8, 4)  # the heights that a round trip's lane can have
_FLUSHES = 160  # of a scope that have a lane
_ROWS = 50  # of these that have a row of the table; the rest are counted, as in the next two
_SHOWN = 20  # commands of a flush
_CALLS = 200  # marks of calls in a lane


def page(scopes: Sequence[ScopeRecord]) -> bytes:
    """Return the page.

    Args:
        scopes: which to show, the last one first.
    """
    body = "".join(map(_scope, scopes)) or _EMPTY
    body = body.replace("<details>", "<details open>", 1)
    style = files("autobatch").joinpath("waterfall.css").read_text("utf-8")
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>autobatch: {counted(len(scopes), "request")}</title>
<style>{style}</style>
<header>
<h1>Where the round trips went</h1>
<p>The last {counted(len(scopes), "scope")}, the newest first: open one to see its round trips, what
forced them, and what could have travelled together. <a href="">Look again</a></p>
<p class="legend"><span><i></i>a round trip</span>
<span><i class="aside"></i>of a command that runs by itself</span>
<span><i class="bad"></i>with an error</span></p>
</header>
{_HEAD if scopes else ""}{body}
<footer>Names and keys are shown, values are never recorded.</footer>
</html>
""".encode(errors="replace")  # a path may be no text


_EMPTY = '<p class="empty">No scope has ended since the application started.</p>'
_HEAD = """<div class="row head"><span>at</span><span>scope</span>
<span class="number">time</span><span class="number">commands</span>
<span class="number">round trips</span><span class="number">saved</span></div>
"""


def _scope(scope: ScopeRecord) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(scope.at))
    within = f' <span class="within">in {escape(scope.parent)}</span>' if scope.parent else ""
    failed = any(flush.errors for flush in scope.flushes)
    advice = "".join(f"<li>{escape(str(one))}</li>" for one in advise(scope))
    flushes = list(scope.flushes)
    more = ""
    if len(flushes) > _ROWS:
        more = f'<p class="place">and {len(flushes) - _ROWS} more</p>'
    return f"""<details>
<summary class="row"><time>{at}</time>
<span class="name{" bad" * failed}">{escape(scope.name)}{within}</span>
<span class="number">{_ms(scope.duration)}</span><span class="number">{scope.commands}</span>
<span class="number">{scope.round_trips}</span><span class="number">{_saved(scope)}</span></summary>
{_picture(scope, flushes[:_FLUSHES])}{f'<ul class="advice">{advice}</ul>' if advice else ""}
{_table(flushes[:_ROWS])}{more}
</details>
"""


def _saved(scope: ScopeRecord) -> str:
    if not scope.saved:
        return "0"
    # The shortest tells most of the way there: the others have waited for something else as well.
    each = min(flush.duration / flush.round_trips for flush in scope.flushes)
    return f"{scope.saved}, ≈ {_ms(scope.saved * each)}"


def _picture(scope: ScopeRecord, flushes: Sequence[FlushRecord]) -> str:
    """Return the round trips on a time axis, a lane each; a mark where a command was called."""
    if not flushes:
        return ""
    span = max([scope.closed, *(flush.finished for flush in flushes)]) - scope.opened
    scale = _WIDTH / max(span, 1e-6)

    def x(moment: float) -> float:
        return round((moment - scope.opened) * scale, 2)

    lane = next((one for one in _LANES if one * len(flushes) <= _HEIGHT), _LANES[-1])
    lanes = "".join(_lane(flush, at * lane, lane, x) for at, flush in enumerate(flushes))
    axis = "".join(f"<span>{_ms(span * part / 4)}</span>" for part in range(5))
    height = len(flushes) * lane
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" height="{height}" preserveAspectRatio="none" '
        f'role="img" aria-label="the round trips of {_ms(span)}">{lanes}</svg>'
        f'<div class="axis" aria-hidden="true">{axis}</div>'
    )


def _lane(flush: FlushRecord, y: int, height: int, x: Callable[[float], float]) -> str:
    middle = y + height / 2
    kind = " bad" if flush.errors else " aside" if flush.reason is Reason.ALONE else ""
    start, end = x(flush.started), x(flush.finished)
    called = sorted({x(command.called) for command in flush.commands}) or [start]
    shown = called[:_CALLS] if height > _LANES[-1] else ()  # too low for more than the wait
    gap = height / 8
    inner = f'y="{y + 1.5 * gap:g}" height="{height - 3 * gap:g}"'
    marks = "".join(f'<rect class="call" x="{at}" width="1.5" {inner}/>' for at in shown)
    return (
        f"<g><title>{escape(_title(flush))}</title>"
        f'<rect class="lane" y="{y + gap / 2:g}" width="{_WIDTH}" height="{height - gap:g}"/>'
        f'<line class="wait" x1="{called[0]}" x2="{start}" y1="{middle:g}" y2="{middle:g}"/>{marks}'
        f'<rect class="trip{kind}" x="{start}" width="{max(3, end - start):.2f}" {inner}/></g>'
    )


def _title(flush: FlushRecord) -> str:
    return f"{counted(len(flush.commands), 'command')}, {_ms(flush.duration)}, {_why(flush)}"


def _why(flush: FlushRecord) -> str:
    if flush.reason is Reason.FORCED and flush.use is not None:
        return f"forced ({flush.use})"
    return str(flush.reason)


def _table(flushes: Iterable[FlushRecord]) -> str:
    rows = "".join(_row(number, flush) for number, flush in enumerate(flushes, 1))
    if not rows:
        return ""
    return f"""<table><colgroup><col class="order"><col class="why"><col><col class="figure">
<col class="figure"><col class="figure"></colgroup>
<thead><tr><th class="number">#</th><th>why</th><th>commands</th>
<th class="number">waited</th><th class="number">took</th><th class="number">bytes</th></tr></thead>
<tbody>{rows}</tbody></table>"""


def _row(number: int, flush: FlushRecord) -> str:
    place = "" if flush.place is None else f'<br><span class="place">{_place(flush)}</span>'
    more = []
    if flush.exchanges > 1:
        more.append(counted(flush.exchanges, "exchange"))
    if flush.round_trips > 1:
        more.append(counted(flush.round_trips, "round trip"))
    if flush.retries:
        more.append(f"sent again: {flush.retries}")
    others = f'<br><span class="place">{escape(", ".join(more))}</span>' if more else ""
    commands = "".join(map(_command, flush.commands[:_SHOWN]))
    if len(flush.commands) > _SHOWN:
        commands += f"<li>and {len(flush.commands) - _SHOWN} more</li>"
    return (
        f'<tr><td class="number">{number}</td><td>{escape(_why(flush))}{place}{others}</td>'
        f"<td><ul>{commands}</ul></td>"
        f'<td class="number">{_ms(flush.queued)}</td><td class="number">{_ms(flush.duration)}</td>'
        f'<td class="number">{flush.size}</td></tr>'
    )


def _place(flush: FlushRecord) -> str:
    assert flush.place is not None
    return escape(f"{flush.place} in {flush.place.function}")


def _command(command: CommandRecord) -> str:
    place = f' <span class="place">{escape(str(command.place))}</span>' if command.place else ""
    error = f'<br><span class="bad">{escape(command.error)}</span>' if command.error else ""
    return f"<li><code>{escape(str(command))}</code>{place}{error}</li>"


def _ms(seconds: float) -> str:
    milliseconds = 1000 * seconds
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.2f} ms"  # noqa: PLR2004
