"""What may be true after a program: its calls, held against one another and what a server has.

Every write has a token of its own, so each can be found again. A write that was acknowledged is
there once, one whose outcome is unknown at most once, one that was not sent never. An unknown
write may take effect late: its bytes may wait in the network until everything else has ended.

Each call has the tick at which it was made, and that by which its outcome was known. One precedes
another if the same actor made it earlier, or if its outcome was known before the other was made.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import redis
from redis.exceptions import ExecAbortError

from autobatch.errors import NotSent, OutcomeUnknown


class Kind(enum.Enum):
    """What a call does; the value names the family of its key."""

    PUSH = "list", "push"
    SCRIPT = "list", "script"
    RANGE = "list", "range"
    SET = "register", "set"
    GET = "register", "get"
    COUNT = "counter", "count"
    TOTAL = "counter", "total"
    FIELD = "fields", "field"
    WRONG = "wrong", "wrong"
    ECHO = "nothing", "echo"

    @property
    def family(self) -> str:
        return self.value[0]


class Outcome(enum.Enum):
    """What the program was told of a call."""

    VALUE = "value"
    ERROR = "the server's error"
    NOT_SENT = "not sent"
    UNKNOWN = "unknown"
    CANCELLED = "cancelled"  # a coroutine of redis-py's kind: nobody was told
    OTHER = "another error"
    NONE = "never settled"


_MAYBE = {Outcome.UNKNOWN, Outcome.CANCELLED}
LISTED = {Kind.PUSH, Kind.SCRIPT}


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a program.

    Attributes:
        actor: the thread or task that made it.
        called, known: ticks.
        block: the atomic block that it is in, and the client: what one MULTI holds.
        droppable: a block around it may drop it.
        looked: the program has asked what became of it.
        future: where its outcome will be; None if it was told at the call.
    """

    kind: Kind
    server: int
    key: str
    token: str
    actor: int
    called: int
    block: tuple[int, int] | None = None
    droppable: bool = False
    looked: bool = False
    future: Any = None
    known: int | None = None
    outcome: Outcome = Outcome.NONE
    value: Any = None

    def settle(self, value: Any, error: BaseException | None, tick: int) -> None:
        """Note what the program was told."""
        self.known = tick
        self.value = value if error is None else error
        self.outcome = Outcome.VALUE if error is None else _outcome_of(error)

    @property
    def acknowledged(self) -> bool:
        return self.outcome is Outcome.VALUE

    @property
    def well_formed(self) -> bool:
        """Whether its reply, if there is one, is of the kind that it asked for."""
        return not self.acknowledged or _SHAPES[self.kind](self.value, self.token)

    @property
    def failed(self) -> bool:
        return self.outcome is not Outcome.VALUE

    def precedes(self, other: Call) -> bool:
        """Return whether this was over, or at least on its way in front, when `other` was made."""
        if self.actor == other.actor:
            return self.called < other.called
        return self.known is not None and self.known < other.called

    def __str__(self) -> str:
        told = f"{self.outcome.value}: {self.value!r}" if self.value is not None else ""
        block = f" in MULTI {self.block}" if self.block else ""
        return (
            f"#{self.called} actor {self.actor} {self.kind.name} {self.token} "
            f"at {self.server}/{self.key}{block} -> {told or self.outcome.value} (by {self.known})"
        )


def _text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


# Of a reply to each kind of call: whether it can be one, given the call's token.
_SHAPES: dict[Kind, Callable[[Any, str], bool]] = {
    Kind.PUSH: lambda value, _: type(value) is int and value > 0,
    Kind.SCRIPT: lambda value, token: (
        isinstance(value, list) and value[:1] == [token] and type(value[-1]) is int
    ),
    Kind.RANGE: lambda value, _: isinstance(value, list) and all(map(_text_or_none, value)),
    Kind.SET: lambda value, _: value is True,
    Kind.GET: lambda value, _: _text_or_none(value),
    Kind.COUNT: lambda value, _: type(value) is int,
    Kind.TOTAL: lambda value, _: value is None or (isinstance(value, str) and value.isdigit()),
    Kind.FIELD: lambda value, _: type(value) is int and value == 1,
    Kind.WRONG: lambda _, __: False,
    Kind.ECHO: lambda value, token: bool(value == token),
}


def _outcome_of(error: BaseException) -> Outcome:
    if isinstance(error, OutcomeUnknown):
        return Outcome.UNKNOWN
    if isinstance(error, NotSent | redis.BusyLoadingError | ExecAbortError):
        return Outcome.NOT_SENT
    return Outcome.ERROR if isinstance(error, redis.ResponseError) else Outcome.OTHER


def violations(calls: list[Call], state: dict[tuple[int, str], Any], *, calm: bool) -> list[str]:
    """Return in what a program broke the promises.

    Args:
        calls: all that it made.
        state: what the servers hold afterwards, by server and key.
        calm: nothing befell it.
    """
    found = [f"the wrong reply: {call}" for call in calls if not call.well_formed]
    if found:
        return found  # nothing else can be told
    found += _told(calls, calm=calm)
    by_key: dict[tuple[int, str], list[Call]] = {place: [] for place in state}
    for call in calls:
        by_key.setdefault((call.server, call.key), []).append(call)
    for place, group in by_key.items():
        family = place[1].rpartition(":")[0].rpartition(":")[2]
        check = _CHECKS.get(family)
        if check is not None:
            found += [f"{place}: {text}" for text in check(group, state.get(place))]
    found += _transactions(calls, state)
    return found


def _told(calls: list[Call], *, calm: bool) -> Iterator[str]:
    for call in calls:
        if call.outcome in {Outcome.NONE, Outcome.OTHER}:
            yield f"no outcome of the promised kinds: {call}"
        elif call.outcome is Outcome.ERROR and call.kind is not Kind.WRONG:
            yield f"an error of the server: {call}"
        expected = Outcome.ERROR if call.kind is Kind.WRONG else Outcome.VALUE
        excused = call.droppable or call.outcome is Outcome.CANCELLED
        if calm and call.outcome is not expected and not excused:
            yield f"failed, though nothing befell it: {call}"


def _list(calls: list[Call], final: Any) -> Iterator[str]:
    items: list[str] = final or []
    count = collections.Counter(items)
    pushes = [call for call in calls if call.kind in LISTED]
    for call in pushes:
        yield from _times(call, count.pop(call.token, 0))
        if not call.acknowledged:
            continue
        length = call.value
        if call.kind is Kind.SCRIPT:
            length = call.value[1]
        if items[length - 1 : length] != [call.token]:
            yield f"told of another place in {items}: {call}"
    if count:
        yield f"nobody pushed {list(count)}"
    yield from _order(pushes, items)
    for call in calls:
        if call.kind is Kind.RANGE and call.acknowledged:
            if call.value != items[: len(call.value)]:
                yield f"never was the beginning of {items}: {call}"
            yield from _missed(call, pushes, set(call.value))


def _times(call: Call, times: int) -> Iterator[str]:
    least = int(call.acknowledged)
    most = int(call.acknowledged or call.outcome in _MAYBE)
    if not least <= times <= most:
        yield f"ran {times} times: {call}"


def _order(pushes: list[Call], items: list[str]) -> Iterator[str]:
    """What an actor called after an acknowledged push is behind it, if it is there at all."""
    place = {token: number for number, token in enumerate(items)}
    for first, second in itertools.permutations(pushes, 2):
        if (
            first.acknowledged
            and first.precedes(second)
            and place.get(first.token, 0) > place.get(second.token, len(items))
        ):
            yield f"out of order in {items}: {first} and {second}"


def _missed(read: Call, writes: list[Call], seen: set[str]) -> Iterator[str]:
    for write in writes:
        if write.acknowledged and write.precedes(read) and write.token not in seen:
            yield f"{read} misses {write}"
        if read.precedes(write) and write.token in seen:
            yield f"{read} sees what came later: {write}"


def _register(calls: list[Call], final: Any) -> Iterator[str]:
    sets = {call.token: call for call in calls if call.kind is Kind.SET}
    end = Call(Kind.GET, 0, "", "the end", -1, _END, known=_END)
    end.settle(final, None, _END)
    for read in [*(call for call in calls if call.kind is Kind.GET), end]:
        if not read.acknowledged:
            continue
        before = [call for call in sets.values() if call.acknowledged and call.precedes(read)]
        if read.value is None:
            if before:
                yield f"{read} misses {before[-1]}"
            continue
        source = sets.get(read.value)
        if source is None:
            yield f"nobody has set that: {read}"
        elif source.outcome is Outcome.NOT_SENT:
            yield f"{read} sees what was not sent: {source}"
        elif read.precedes(source):
            yield f"{read} sees what came later: {source}"
        elif source.acknowledged:
            over = [call for call in before if source.precedes(call)]
            if over:
                yield f"{read} sees {source}, which was overwritten: {over[-1]}"


def _counter(calls: list[Call], final: Any) -> Iterator[str]:
    counts = [call for call in calls if call.kind is Kind.COUNT]
    acknowledged = [call for call in counts if call.acknowledged]
    most = len(acknowledged) + sum(call.outcome in _MAYBE for call in counts)
    total = int(final or 0)
    if not len(acknowledged) <= total <= most:
        yield f"{total}, but {len(acknowledged)} to {most} were counted: {_lines(counts)}"
    for first, second in itertools.combinations(acknowledged, 2):
        if first.value == second.value:
            yield f"the same number twice: {first} and {second}"
    for call in [*acknowledged, *(c for c in calls if c.kind is Kind.TOTAL and c.acknowledged)]:
        others = [other for other in acknowledged if other is not call]
        least = sum(other.precedes(call) for other in others) + (call.kind is Kind.COUNT)
        number = int(call.value or 0)
        later = sum(call.precedes(other) for other in others)
        if not least <= number <= total - later:
            yield f"not from {least} to {total - later}: {call}"


def _fields(calls: list[Call], final: Any) -> Iterator[str]:
    fields: dict[str, str] = dict(final or {})
    for call in calls:
        yield from _times(call, int(fields.pop(call.token, 0)))
    if fields:
        yield f"nobody wrote {fields}"


_CHECKS = {"list": _list, "register": _register, "counter": _counter, "fields": _fields}
_END = 1 << 62


def _transactions(calls: list[Call], state: dict[tuple[int, str], Any]) -> Iterator[str]:
    """The commands of one MULTI have run together, or none has."""
    blocks: dict[tuple[int, int], list[Call]] = {}
    for call in calls:
        if call.block is not None:
            blocks.setdefault(call.block, []).append(call)
    for block in blocks.values():
        outcomes = {Outcome.VALUE if c.outcome is Outcome.ERROR else c.outcome for c in block}
        if len(outcomes) > 1:
            yield f"a part of a MULTI has another outcome: {_lines(block)}"
        found = [call for call in block if call.kind in {*LISTED, Kind.FIELD}]
        there = {call.token in (state.get((call.server, call.key)) or []) for call in found}
        if len(there) > 1:
            yield f"a part of a MULTI has run: {_lines(block)}"
        elif there == {True}:
            yield from _between(found, state)


def _between(calls: list[Call], state: dict[tuple[int, str], Any]) -> Iterator[str]:
    """What one MULTI has pushed stands together."""
    pushed: dict[tuple[int, str], list[str]] = {}
    for call in calls:
        if call.kind in LISTED:
            pushed.setdefault((call.server, call.key), []).append(call.token)
    for place, tokens in pushed.items():
        items = state[place]
        start = items.index(tokens[0])
        if items[start : start + len(tokens)] != tokens:
            yield f"something came between {tokens} of a MULTI in {items}"


def _lines(calls: Iterable[Call]) -> str:
    return "".join(f"\n    {call}" for call in calls)
