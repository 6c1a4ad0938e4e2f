"""Missed batches: what to move where, and how many round trips that saves.

From the records of a scope: which forces came early, so that their commands could have travelled
with later ones; loops that force once a turn (N+1); and forces that nothing can save, since a later
command needs the value.

What is promised is counted, not estimated: the commands are laid out anew as they would have left
without a force, each behind those whose values it needs. That a value is needed is seen where it
is an argument at the time, or where the source shows that it flows into an argument or decides a
condition. Commands of one key keep their order, if any of them writes.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import re
from typing import NamedTuple, TypeAlias

from autobatch import dataflow
from autobatch.dataflow import Reach, Unseen
from autobatch.report import CommandRecord, FlushRecord, Place, Reason, ScopeRecord, counted


class Kind(enum.StrEnum):
    """What an advice is about."""

    LOOP = "N+1 loop"
    """The same line forces again and again what the same line has called."""
    CHAIN = "N+1 chain"
    """Again and again, a value is an argument of the next command: `.map()` lets them share."""
    EARLY = "early force"
    """A value was needed before commands were called that could have travelled with it."""
    DEPENDENCY = "true dependency"
    """What was called next needs the value: nothing is to be gained."""


@dataclasses.dataclass(frozen=True, slots=True)
class Advice:
    """What to do about one line that forces.

    Attributes:
        kind: what it is about.
        place: the line that forces; where an event loop did, the line that called.
        text: what to do, in a sentence.
        round_trips: of the scope, when the advices before this one are followed.
        possible: of the scope, when this one is, too.
        times: how often the line has forced.
        certain: whether the source was there to look at.
    """

    kind: Kind
    place: Place
    text: str
    round_trips: int
    possible: int
    times: int = 1
    certain: bool = True

    @property
    def saved(self) -> int:
        """How many round trips following it saves."""
        return self.round_trips - self.possible

    def __str__(self) -> str:
        return self.text


def advise(scope: ScopeRecord) -> list[Advice]:
    """Return what could have saved round trips in a scope: what saves most comes first.

    Each advice counts on those before it: `possible` of the last one that saves anything is what
    remains when all are followed. True dependencies, which save nothing, come last.

    Args:
        scope: its record, as `subscribe(on_scope=...)` gives it.

    Raises:
        TypeError: it is a scope itself, which keeps no record.
    """
    if not isinstance(scope, ScopeRecord):
        raise TypeError(
            "advice takes the record of a scope, which autobatch.report.subscribe(on_scope=...) "
            f"gives when the scope has ended, not {type(scope).__name__}"
        )
    # Of a single flush, nothing can be spared.
    return _Adviser(scope).advices() if len(scope.flushes) > 1 else []


def possible(scope: ScopeRecord) -> int:
    """Return how many round trips a scope would take if all advice was followed."""
    saved = sum(advice.saved for advice in advise(scope))
    return scope.round_trips - saved


Stack: TypeAlias = tuple[Place, ...]
Places: TypeAlias = frozenset[Place]


@dataclasses.dataclass(frozen=True, slots=True)
class _Step:
    """A command where it was called.

    Attributes:
        record: of it.
        stack: the line that called it, and those that led there.
        number: of the stack, among those of the scope.
    """

    record: CommandRecord
    stack: Stack
    number: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Group:
    """Lines that force together: sparing one of them alone saves nothing."""

    places: Places
    flushes: list[int]


def _places_of(groups: list[_Group]) -> Places:
    return frozenset(place for group in groups for place in group.places)


class _Words(NamedTuple):
    """How to say it."""

    does: str
    early: str
    loop: str
    chain: str


_FORCED = _Words(
    "force",
    "; forced after {} it would join the next flush",
    "; call {} for all turns first, then look at the values",
    "; the value goes to {}: pass it on with .map(), or in a second loop",
)
_AWAITED = _Words(
    "await",
    "; awaited after {} it would join the next flush",
    "; call {} for all turns first, then await",
    "; the value goes to {}: pass it on with .map(), or let asyncio.gather() run all turns",
)
_EAGER = _Words(
    "call",
    "; in a batch it could travel with {}",
    "; in a batch, {} could be called for all turns in one round trip",
    "; the value goes to {}: with .map(), or in a second loop, all turns could share",
)


def _words_for(flush: FlushRecord) -> _Words:
    if flush.reason is Reason.EAGER:
        return _EAGER
    return _AWAITED if flush.use == "await" else _FORCED


class _Adviser:
    """Lays the commands of one scope out anew."""

    def __init__(self, scope: ScopeRecord) -> None:
        dataflow.refresh()
        self._name = scope.name
        self._flushes = list(scope.flushes)
        self._stacks: list[Stack] = []
        self._steps = self._numbered()
        self._called_in = [{step.number for step in steps} for steps in self._steps]
        every = [step for steps in self._steps for step in steps]
        self._writing = {step.number for step in every if not step.record.read_only}
        self._forced = [_forced_in(flush) for flush in self._flushes]
        # What is kept of a long scope is its end.
        self._before = scope.round_trips - sum(flush.round_trips for flush in self._flushes)
        self._flows: dict[tuple[int, int], Reach | None] = {}
        self._sources: dict[int, list[int]] = {}
        self._unseen: set[str] = set()
        self._groups = self._grouped()

    # ---- what is advised

    def advices(self) -> list[Advice]:
        left = sorted(self._groups, key=lambda group: self._round_trips(group.places))
        followed: Places = frozenset()
        now = self._round_trips(followed)
        found: list[Advice] = []
        while True:
            best = self._next_to_follow(left, followed, now)
            if best is None:
                break
            followed |= best.places
            left = [group for group in left if not group.places <= followed]
            then = self._round_trips(followed)
            found.append(self._advice(best, now, then, followed))
            now = then
        return found + [one for group in left for one in self._dependency(group, now)]

    def _next_to_follow(self, left: list[_Group], followed: Places, now: int) -> _Group | None:
        for group in left:
            if self._round_trips(followed | group.places) < now:
                return group
        # Some save only together: the fewest of them that do.
        together = list(left)
        if not left or self._round_trips(followed | _places_of(together)) >= now:
            return None
        for group in left:
            fewer = [one for one in together if one is not group]
            if self._round_trips(followed | _places_of(fewer)) < now:
                together = fewer
        flushes = {number for group in together for number in group.flushes}
        return _Group(_places_of(together), sorted(flushes))

    def _numbered(self) -> list[list[_Step]]:
        numbers: dict[Stack, int] = {}
        # Hashing a stack takes long, and most commands share theirs with the one before.
        known: dict[tuple[int, int], tuple[Stack, int]] = {}
        steps = []
        for flush in self._flushes:
            of_flush = []
            for command in flush.commands:
                key = id(command.place), id(command.callers)
                if key not in known:
                    stack = _stack_of(command)
                    known[key] = stack, numbers.setdefault(stack, len(numbers))
                of_flush.append(_Step(command, *known[key]))
            steps.append(of_flush)
        self._stacks = list(numbers)
        return steps

    def _grouped(self) -> list[_Group]:
        by_places: dict[Places, list[int]] = {}
        for number, forced in enumerate(self._forced):
            if forced:
                by_places.setdefault(frozenset(place for place, _ in forced), []).append(number)
        return [_Group(places, numbers) for places, numbers in by_places.items()]

    def _advice(self, group: _Group, now: int, then: int, followed: Places) -> Advice:
        number = group.flushes[0]
        place = self._forced[number][0].place
        words = _words_for(self._flushes[number])
        others = sorted({_near(one, place) for one in group.places} - {_near(place, place)})
        who = " and ".join([str(place), *others])
        does = words.does + ("" if others else "s")
        commands = sum(len(self._flushes[number].commands) for number in group.flushes)
        often = f", in {len(group.flushes)} flushes" if len(group.flushes) > 1 else ""
        kind, what = self._what_to_do(group, place, followed, words)
        saves = f"{counted(now, 'round trip')} could be {then}"
        certain = not self._unseen
        text = f"{who} {does} {counted(commands, 'command')}{often}{what}: {saves}"
        if kind is not Kind.EARLY:
            text = f"{kind}: {text}"
        if not certain:
            text += ", as far as can be seen"
        return Advice(kind, place, text, now, then, len(group.flushes), certain)

    def _what_to_do(
        self, group: _Group, place: Place, followed: Places, words: _Words
    ) -> tuple[Kind, str]:
        loop = self._loop_around(group)
        needed = self._needed_by(group)
        if (loop is None and len(group.flushes) <= _FEW) or self._needs_itself(group, needed):
            last = self._last_to_join(group, place, followed)
            return Kind.EARLY, words.early.format(last)
        turns = "" if loop is None else f" (the loop of {_near(loop, place)})"
        if len(needed) >= _FEW and needed[0][1] is Reach.ARGUMENT:
            target = needed[0]
            goes = _near(target[0].stack[0], place) if target[0].stack else "the next command"
            return Kind.CHAIN, turns + words.chain.format(goes)
        called = self._steps[group.flushes[0]][-1].stack
        return Kind.LOOP, turns + words.loop.format(_near(called[0], place) if called else "it")

    def _dependency(self, group: _Group, now: int) -> list[Advice]:
        needed = self._needed_by(group)
        if not needed:
            return []
        step, how = needed[0]
        place = self._forced[group.flushes[0]][0].place
        what = _near(step.stack[0], place) if step.stack else str(step.record)
        why = (
            f"is passed to the command of {what}"
            if how is Reach.ARGUMENT
            else f"decides whether {what} is called"
        )
        text = f"{place} needs a value that {why}: a true dependency"
        certain = not self._unseen
        return [Advice(Kind.DEPENDENCY, place, text, now, now, len(group.flushes), certain)]

    def _needed_by(self, group: _Group) -> list[tuple[_Step, Reach]]:
        """Return the first commands that need what a group forced, and how: two of them suffice."""
        found: list[tuple[_Step, Reach]] = []
        for number in group.flushes:
            for step in self._steps[number + 1] if number + 1 < len(self._steps) else []:
                how = self._how_needed(number, step)
                if how is not None:
                    found.append((step, how))
                    break
            if len(found) == _FEW:
                break
        return found

    def _needs_itself(self, group: _Group, needed: list[tuple[_Step, Reach]]) -> bool:
        """Return whether a turn of a loop needs the value of the one before."""
        number = group.flushes[0]
        steps = self._steps[number]
        forced = {steps[index].number for _, index in self._forced[number] if index is not None}
        return any(step.number in forced for step, _ in needed)

    def _loop_around(self, group: _Group) -> Place | None:
        """Return the loop that a group's commands are called in, if they are called in one."""
        if len(group.flushes) < _FEW:
            return None
        stacks = [self._steps[number][-1].stack for number in group.flushes]
        in_program = False
        for place in stacks[0]:
            installed = _INSTALLED.search(place.file) is not None
            if in_program and installed:
                break  # what has called the program has loops of its own
            in_program = not installed
            if all(place in stack for stack in stacks):
                try:
                    line = dataflow.loop_of(place)
                except Unseen:
                    break
                if line is not None:
                    return (
                        None
                        if self._opened_in(place, line)
                        else dataclasses.replace(place, line=line)
                    )
        return None

    def _opened_in(self, place: Place, loop: int) -> bool:
        """Return whether the scope is a `with` block inside a loop around a place."""
        file, _, line = self._name.rpartition(":")
        return place.file.endswith(file) and line.isdigit() and loop < int(line) <= place.line

    def _last_to_join(self, group: _Group, place: Place, followed: Places) -> str:
        """Return the line after which a value can be forced: of what travels with it then."""
        number = group.flushes[0]
        levels = self._levels(followed)
        with_it = levels[number][-1]
        later = [
            step.stack
            for steps, of_flush in zip(self._steps[number + 1 :], levels[number + 1 :], strict=True)
            for step, level in zip(steps, of_flush, strict=True)
            if level == with_it and step.stack
        ]
        if not later:
            return "what is called next"
        # In the terms of the function that forces, if it goes on to call that; in those of its
        # caller, if that calls it again.
        function = _function_of(place)
        for at, one in enumerate(later[-1]):
            if _function_of(one) == function:
                again = one.line <= place.line and at + 1 < len(later[-1])
                return _near(later[-1][at + 1] if again else one, place)
        return _near(later[-1][0], place)

    # ---- laying out anew

    def _round_trips(self, spared: Places) -> int:
        """Return the scope's round trips without the forces of some lines."""
        costs: dict[int, int] = {}
        for flush, levels in zip(self._flushes, self._levels(spared), strict=True):
            for level in set(levels):
                costs[level] = max(costs.get(level, 1), flush.round_trips)
        return self._before + sum(costs.values())

    def _levels(self, spared: Places) -> list[list[int]]:
        """Return, flush by flush, which round trip each command would be a part of.

        A command is as early as it can be: behind the last force that stays, and behind what it
        needs.
        """
        levels: list[list[int]] = []
        base = 0
        layout = _Layout()
        level_of: dict[int, int] = {}  # by the id of a record
        newest: dict[int, int] = {}  # the last round trip with a command of the stack
        for number, steps in enumerate(self._steps):
            if self._flushes[number].reason is Reason.ALONE or self._flushes[number].divided:
                base = layout.end
            of_flush: list[int] = []
            for step in steps:
                level = max(base, layout.behind(step.record))
                if number and (not step.stack or self._was_passed(number - 1, step)):
                    level = max(level, *(before + 1 for before in levels[-1]))
                for needed in step.record.needs:
                    level = max(level, level_of.get(id(needed), -1) + 1)
                for source in self._sources_of(step.number) if number else ():
                    level = max(level, newest.get(source, -1) + 1)
                layout.add(step.record, level)
                of_flush.append(level)
            for step, level in zip(steps, of_flush, strict=True):
                level_of[id(step.record)] = level
                newest[step.number] = max(level, newest.get(step.number, 0))
            levels.append(of_flush)
            kept = [index for place, index in self._forced[number] if place not in spared]
            if not self._forced[number]:
                base = layout.end  # a scope's end, a limit and the like stay what they are
            for index in kept:
                base = max(base, (max(of_flush) if index is None else of_flush[index]) + 1)
        return levels

    def _sources_of(self, target: int) -> list[int]:
        """Return what has called commands whose values reach those of a stack."""
        if target not in self._sources:
            self._sources[target] = [
                source
                for source in range(len(self._stacks))
                if self._flow(source, target) is not None
            ]
        return self._sources[target]

    def _how_needed(self, number: int, step: _Step) -> Reach | None:
        if not step.stack or self._was_passed(number, step):
            return Reach.ARGUMENT
        if any(
            needed is other.record for needed in step.record.needs for other in self._steps[number]
        ):
            return Reach.ARGUMENT
        found = {self._flow(other, step.number) for other in self._called_in[number]}
        return next((how for how in Reach if how in found), None)

    def _was_passed(self, number: int, step: _Step) -> bool:
        """Return whether a command was called with, or because of, what a flush was forced for."""
        flush = self._flushes[number]
        if flush.place is None or flush.reason is not Reason.FORCED:
            return False
        if flush.use == "argument":
            return flush.place in step.stack
        if flush.place in step.stack[1:]:  # a function given to map() called it
            return True
        return flush.use in _DECIDING and flush.place.file in self._unseen

    def _flow(self, source: int, target: int) -> Reach | None:
        """Return how values of what one stack has called reach what another one calls."""
        key = source, target
        if key not in self._flows:
            stacks = self._stacks[source], self._stacks[target]
            how = self._look_at_flow(*stacks)
            # A read that would have been left out may be called all the same.
            if how is None and target in self._writing and _decides_to_raise(*stacks):
                how = Reach.CONDITION
            self._flows[key] = how
        return self._flows[key]

    def _look_at_flow(self, source: Stack, target: Stack) -> Reach | None:
        found: set[Reach | None] = set()
        for start in source:
            for end in target:
                if _function_of(start) == _function_of(end) and not _encloses(end, start):
                    try:
                        if dataflow.follows(start, end):
                            found.add(dataflow.reach(start, end))
                    except Unseen:
                        if start == source[0] or end == target[0]:  # others, all have called
                            self._unseen.add(start.file)
        return next((how for how in Reach if how in found), None)


class _Layout:
    """Commands in their round trips; those of one key keep their order, if any of them writes."""

    def __init__(self) -> None:
        self.end = 0
        self._reads: dict[tuple[str, str | None], int] = collections.defaultdict(int)
        self._writes: dict[tuple[str, str | None], int] = collections.defaultdict(int)
        self._last_read = self._last_write = 0

    def behind(self, command: CommandRecord) -> int:
        """Return the first round trip that keeps the order."""
        if command.key is None:  # nobody knows what it touches
            return self._last_write if command.read_only else max(self._last_read, self._last_write)
        keys = (command.server, command.key), (command.server, None)
        first = max(self._writes[key] for key in keys)
        if not command.read_only:
            first = max(first, *(self._reads[key] for key in keys))
        return first

    def add(self, command: CommandRecord, level: int) -> None:
        self.end = max(self.end, level + 1)
        of_key = self._reads if command.read_only else self._writes
        key = command.server, command.key
        of_key[key] = max(of_key[key], level)
        if command.read_only:
            self._last_read = max(self._last_read, level)
        else:
            self._last_write = max(self._last_write, level)


def _decides_to_raise(source: Stack, target: Stack) -> bool:
    """Return whether a function that has ended would have raised, and the target be left out."""
    for depth, place in enumerate(source):
        with contextlib.suppress(Unseen):
            if any(_in_order(place, other) for other in target):
                return False  # it has not ended; how it goes on there is known
            if dataflow.decides_to_raise(place):
                return not _handled(source[depth + 1 :], target)
    return False


def _in_order(first: Place, second: Place) -> bool:
    """Return whether a function calls the second after the first."""
    return _function_of(first) == _function_of(second) and dataflow.follows(first, second)


def _handled(callers: Stack, target: Stack) -> bool:
    """Return whether one of those that called handles what was raised, and goes on."""
    for caller in callers:
        same = [place for place in target if _function_of(place) == _function_of(caller)]
        with contextlib.suppress(Unseen):
            if dataflow.goes_on(caller, same[0] if same else None):
                return True
        if same:
            return False
    return False


def _stack_of(command: CommandRecord) -> Stack:
    return () if command.place is None else (command.place, *command.callers)


class _Forced(NamedTuple):
    """What one line forced."""

    place: Place
    command: int | None  # its place in the flush, if that is known


def _forced_in(flush: FlushRecord) -> list[_Forced]:
    """Return what forced a flush; where an event loop did, the lines that called are told."""
    forced: list[tuple[Place | None, int | None]] = []
    if flush.reason is Reason.EAGER:
        forced = [(command.place, number) for number, command in enumerate(flush.commands)]
    elif flush.reason is Reason.FORCED:
        forced = [
            (
                force.place
                or (None if force.command is None else flush.commands[force.command].place),
                force.command,
            )
            for force in flush.forces
        ] or [(flush.place, flush.forced)]
    told = [_Forced(place, command) for place, command in forced if place is not None]
    return told if len(told) == len(forced) else []


def _function_of(place: Place) -> tuple[str, str]:
    """Return what tells a function from others; a comprehension is a part of its function."""
    name = place.function
    for inner in (
        ".<locals>.<listcomp>",
        ".<locals>.<setcomp>",
        ".<locals>.<dictcomp>",
        ".<locals>.<genexpr>",
        ".<locals>.<lambda>",
    ):
        name = name.replace(inner, "")
    return place.file, name


def _encloses(outer: Place, inner: Place) -> bool:
    """Return whether a comprehension is called at a place, and another place is in it.

    Of what such an element is the value, the whole says nothing that the element does not.
    """
    if outer.function == inner.function or outer.span is None or inner.span is None:
        return False
    column, *end = outer.span
    inner_column, *inner_end = inner.span
    return (outer.line, column) <= (inner.line, inner_column) and inner_end <= end


def _near(place: Place, other: Place) -> str:
    """Return a place in short, beside one that was told already."""
    return f"line {place.line}" if place.file == other.file else str(place)


_FEW = 2
# What is not the program's own, as far as a path tells.
_INSTALLED = re.compile(r"/lib(64)?/python3(\.\d+)?/")
# Where the source is not there: uses that a program mostly decides by.
_DECIDING = {"bool", "contains", "eq", "ge", "gt", "le", "len", "lt", "ne"}
