"""Missed batches: what to move where, and how many round trips that saves.

From the records of a scope: which forces came early, so that their commands could have travelled
with later ones; loops that force once a turn (N+1); and forces that nothing can save, since a later
command needs the value.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

from autobatch.report import FlushRecord, Place, Reason, ScopeRecord, counted


class Kind(enum.StrEnum):
    """What an advice is about."""

    LOOP = "N+1 loop"
    """The same line forces again and again what the same line has called."""
    EARLY = "early force"
    """A value was needed before commands were called that could have travelled with it."""
    DEPENDENCY = "true dependency"
    """What was called next needs the value: nothing is to be gained."""


@dataclasses.dataclass(frozen=True, slots=True)
class Advice:
    """What to do about one line that forces.

    Attributes:
        kind: what it is about.
        place: the line that forces.
        text: what to do, in a sentence.
        round_trips: of the scope, as it ran.
        possible: of the scope, if this advice is followed, and no other.
        times: how often the line has forced.
    """

    kind: Kind
    place: Place
    text: str
    round_trips: int
    possible: int
    times: int = 1

    @property
    def saved(self) -> int:
        """How many round trips following it saves."""
        return self.round_trips - self.possible

    def __str__(self) -> str:
        return self.text


def advise(scope: ScopeRecord) -> list[Advice]:
    """Return what could have saved round trips in a scope: what saves most first.

    True dependencies, which save nothing, come last.

    Args:
        scope: its record, as `subscribe(on_scope=...)` gives it.
    """
    flushes = list(scope.flushes)
    by_place: dict[Place, list[int]] = {}
    for number, flush in enumerate(flushes):
        if flush.reason is Reason.FORCED and flush.place is not None:
            by_place.setdefault(flush.place, []).append(number)
    found = [_advice_on(scope, flushes, place, numbers) for place, numbers in by_place.items()]
    return sorted((one for one in found if one is not None), key=lambda one: -one.saved)


def _advice_on(
    scope: ScopeRecord, flushes: Sequence[FlushRecord], place: Place, numbers: list[int]
) -> Advice | None:
    now = scope.round_trips
    if flushes[numbers[0]].use == "argument":
        text = f"{place} passes a value to a command: it has to be known by then"
        return Advice(Kind.DEPENDENCY, place, text, now, now, len(numbers))
    saved = sum(_joins_next(flushes, number) for number in numbers)
    if not saved:
        return None
    called = {flushes[number].commands[-1].place for number in numbers}
    numbered = f"{counted(now, 'round trip')} could be {now - saved}"
    if len(numbers) > _FEW and len(called) == 1:
        text = (
            f"{place} forces {len(numbers)} times what {called.pop()} has called, once a turn: "
            f"call for all first, then look at the values: {numbered}"
        )
        return Advice(Kind.LOOP, place, text, now, now - saved, len(numbers))
    text = f"{place} forces before it has to: look at the value later: {numbered}"
    return Advice(Kind.EARLY, place, text, now, now - saved, len(numbers))


def _joins_next(flushes: Sequence[FlushRecord], number: int) -> bool:
    """Return whether what a flush sent could have been sent by the next one."""
    return number + 1 < len(flushes) and flushes[number + 1].reason is not Reason.ALONE


_FEW = 2
