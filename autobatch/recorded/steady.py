"""What of a run has to come out the same each time it is run, and what may not.

Replies may differ by chance (SPOP), by the clock (TTL), or by the order in which a server gives
them (SMEMBERS): the server itself tells which commands these are. Keys that chance or the clock has
written are in doubt from then on, and so is what is made of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import redis

from autobatch.keys import keys_of
from autobatch.recorded.masking import as_bytes, place_of_id
from autobatch.report import CommandRecord, FlushRecord

# Of these Valkey 9.1.2 does not say it: the clock decides, or what the server does besides.
_UNSTEADY = """
BGREWRITEAOF BGSAVE EXPIRETIME HEXPIRETIME HPEXPIRETIME HPTTL HTTL LOLWUT MEMORY|USAGE PEXPIRETIME
XINFO|STREAM
"""
_OF_ALL_KEYS = {"DBSIZE", "KEYS"}
_BY_CHANCE = {"SPOP", "XAUTOCLAIM", "XCLAIM"}  # or by the clock; and they write
# By the word before it, or the name of a command: whether the time at which a key expires is one
# of a clock, and how many of it there are in a second.
_TIMES = {
    **dict.fromkeys(("EX", "EXPIRE", "HEXPIRE", "SETEX"), (False, 1)),
    **dict.fromkeys(("PX", "PEXPIRE", "HPEXPIRE", "PSETEX"), (False, 1000)),
    **dict.fromkeys(("EXAT", "EXPIREAT", "HEXPIREAT"), (True, 1)),
    **dict.fromkeys(("PXAT", "PEXPIREAT", "HPEXPIREAT"), (True, 1000)),
}
_HAVE_OPTIONS = {"SET", "GETEX", "HSETEX", "HGETEX"}
_GRAIN = 1.0  # seconds: some times have no finer one


class Tips(NamedTuple):
    """What a server says of its commands: the names of those whose replies may differ.

    Attributes:
        unsteady: in what they are.
        unordered: in their order alone.
    """

    unsteady: frozenset[str]
    unordered: frozenset[str]


def tips_of(client: redis.Redis) -> Tips:
    """Ask a server."""
    unsteady = {word.replace("|", " ") for word in _UNSTEADY.split()}
    unordered = set()
    for about in client.execute_command("COMMAND").values():
        for one in (about, *about.get("subcommands", ())):
            whole = isinstance(one, dict)
            name = _text(one["name"] if whole else one[0]).upper().replace("|", " ")
            # Old servers tell nothing of that.
            tips = one.get("tips", ()) if whole else next(iter(one[7:]), ())
            tips = {_text(tip) for tip in tips}
            if "nondeterministic_output" in tips:
                unsteady.add(name)
            if "nondeterministic_output_order" in tips:
                unordered.add(name)
    # Theirs are told: see Ids.
    return Tips(frozenset(unsteady - {"XADD"}), frozenset(unordered))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class Ids:
    """Ids for entries of streams whose server was to choose them: the same ones in each way."""

    def __init__(self) -> None:
        self._milliseconds = 0
        self._numbers = itertools.count()

    def arguments(self, command: CommandRecord, flush: FlushRecord) -> tuple[Any, ...]:
        """Return the arguments of a command of a flush, with an id of its time if it is XADD."""
        args = command.arguments or ()
        at = place_of_id(args) if command.name == "XADD" else len(args)
        if at >= len(args) or as_bytes(args[at]) != b"*":
            return args
        moment = flush.scope.at + command.called - flush.scope.opened
        self._milliseconds = max(self._milliseconds, int(1000 * moment))
        return (*args[:at], f"{self._milliseconds}-{next(self._numbers)}", *args[at + 1 :])


class Doubts:
    """Which keys chance or the clock has written, as a run goes on."""

    def __init__(self, tips: Tips, began: float, ended: float) -> None:
        """Begin with none.

        Args:
            tips: of the server.
            began: when the replay began, in seconds of `time.time()`.
            ended: when it ended. What expires in between may be there in one way, and gone in
                the other.
        """
        self._tips = tips
        self._began = began - _GRAIN
        self._ended = ended + _GRAIN
        self.keys: set[tuple[str, bytes]] = set()

    def of(self, command: CommandRecord) -> bool:
        """Return whether the reply of the next command is in doubt; note what it writes."""
        args = command.arguments or ()
        keys = {(command.server, as_bytes(key)) for key in keys_of(command.name, args) or ()}
        touched = not self.keys.isdisjoint(keys)
        if touched and not command.read_only:
            self.keys |= keys
        if command.name in _BY_CHANCE or any(map(self._passes, _expiries(command.name, args))):
            self.keys |= keys
        all_keys = command.name in _OF_ALL_KEYS and bool(self.keys)
        return touched or all_keys or command.name in self._tips.unsteady

    def _passes(self, expiry: tuple[bool, float]) -> bool:
        absolute, seconds = expiry
        if absolute:
            return self._began <= seconds <= self._ended
        return seconds <= self._ended - self._began


def _expiries(name: str, args: Sequence[Any]) -> Iterable[tuple[bool, float]]:
    """Yield when a command lets a key expire: whether by a clock, and the seconds."""
    words = [as_bytes(arg).upper().decode("latin-1") for arg in args]
    times = itertools.pairwise(words[2:]) if name in _HAVE_OPTIONS else [(name, *words[2:3])]
    for word, *number in times:
        if word in _TIMES and number and number[0].isdigit():
            absolute, in_a_second = _TIMES[word]
            yield absolute, int(number[0]) / in_a_second
