"""The ordered commands that wait for one client. Pure: no socket, no loop, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import redis

from autobatch.command import Command, ScriptCall
from autobatch.errors import NoLoop
from autobatch.promise import PENDING, Failure, run_all


class Wire(Protocol):
    """What a batch asks of the connection it will travel on."""

    @property
    def asynchronous(self) -> bool:
        """Whether an event loop carries it, instead of a thread that waits."""

    @property
    def divides(self) -> bool:
        """Whether one batch travels on several connections, so that replies come in any order."""

    @property
    def server(self) -> object:
        """Equal for wires that reach the same data, whose order has to be kept."""

    def pack(self, args: tuple[Any, ...]) -> bytes:
        """Return a command's bytes."""

    def problem_of(self, commands: Sequence[Command]) -> str | None:
        """Return why some commands cannot be one transaction, if they cannot."""

    @property
    def retry_writes(self) -> bool:
        """Whether what may have run is sent again even if it writes."""

    @property
    def decodes(self) -> bool:
        """Whether the client wants text."""

    def decode(self, reply: Any) -> Any:
        """Return a reply that was read as bytes as the client would have decoded it."""


class Transaction:
    """Commands that run together or not at all: MULTI, the commands, EXEC.

    It has what a Command has, as far as a batch asks for it.
    """

    __slots__ = ("commands", "wire")

    def __init__(self, commands: list[Command], wire: Wire) -> None:
        self.commands = commands
        self.wire = wire

    @property
    def packed(self) -> bytes:
        return b"".join([_MULTI, *(command.packed for command in self.commands), _EXEC])

    @property
    def reply_count(self) -> int:
        return len(self.commands) + 2

    @property
    def read_only(self) -> bool:
        return all(command.read_only for command in self.commands)

    @property
    def never_decode(self) -> bool:
        # EXEC has one reply: what is no text must not fail its neighbours.
        return self.wire.decodes or any(command.never_decode for command in self.commands)

    def settle(self, replies: Sequence[Any]) -> None:
        """Settle every command with the replies to MULTI, to each command, and to EXEC."""
        started, *queued, done = replies
        if isinstance(started, Exception):
            # The server ran what followed one by one, so it has replies, but no transaction.
            for command, reply in zip(self.commands, queued, strict=True):
                self._settle(command, reply)
            if not all(isinstance(reply, Exception) for reply in queued):
                first = self.commands[0]
                first.owner.remember(Failure(started, first))
        elif isinstance(done, Exception):
            for command, reply in zip(self.commands, queued, strict=True):
                command.fail(reply if isinstance(reply, Exception) else copy_of(done))
        elif done is None:
            for command in self.commands:
                command.fail(redis.WatchError("Watched variable changed."))
        elif not isinstance(done, list) or len(done) != len(self.commands):
            cause = redis.InvalidResponse("EXEC was answered with something else")
            self.outcome_unknown("no reply to EXEC", cause)
        else:
            for command, reply in zip(self.commands, done, strict=True):
                self._settle(command, reply)

    def _settle(self, command: Command, reply: Any) -> None:
        if self.wire.decodes and not command.never_decode:
            try:
                reply = self.wire.decode(reply)
            except Exception as error:  # its encoder may be the program's own
                reply = error
        command.settle(reply)

    def not_sent(self, why: str, cause: BaseException | None = None) -> None:
        for command in self.commands:
            command.not_sent(why, cause)

    def outcome_unknown(self, why: str, cause: BaseException | None = None) -> None:
        for command in self.commands:
            command.outcome_unknown(why, cause)


Entry: TypeAlias = Command | Transaction

# More bytes than anything has: nobody can tell what was sent.
EVERYTHING = 1 << 62

_MULTI = b"*1\r\n$5\r\nMULTI\r\n"
_EXEC = b"*1\r\n$4\r\nEXEC\r\n"


def copy_of(error: Exception) -> Exception:
    """Return an error of its own for one of several commands that share a reason."""
    return type(error)(*error.args)


class Batch:
    """Commands of one wire, in program order, until they are settled.

    Attributes:
        wire: what they travel on.
        entries: what has to be sent still.
        handed_over: a shared connection has it, which settles it whatever happens.
        divided: it is a part of another one, which sees to what is left of it.
        usual: each entry is a plain command of one reply.
    """

    __slots__ = ("_sent", "entries", "handed_over", "usual", "wire")

    divided = False

    def __init__(self, wire: Any, entries: list[Entry], *, usual: bool = False) -> None:
        """Take over `entries`; `usual` promises that each is a plain command of one reply."""
        self.wire = wire
        self.entries = entries
        self.handed_over = False
        self.usual = usual
        self._sent: set[Entry] = set()

    def portions(self, size: int) -> list[Batch]:
        """Return batches of at most `size` entries that take over this one's, in order."""
        entries = self.entries
        if len(entries) <= size:
            return [self]
        starts = range(0, len(entries), size)
        return [Batch(self.wire, entries[i : i + size], usual=self.usual) for i in starts]

    def commands(self) -> list[Command]:
        """Return the commands of `entries`, those inside transactions too, in program order."""
        usual: Any = self.entries
        return usual if self.usual else commands_of(self.entries)

    def seal(self) -> bytes:
        """Return the bytes to write, now that the order is final."""
        if not self.usual:
            self._carry_scripts()
        return b"".join([entry.packed for entry in self.entries])

    def expected(self) -> tuple[int, frozenset[int]]:
        """Return how many replies the sealed bytes will have, and which must not be decoded."""
        if self.usual:
            return len(self.entries), _NONE
        count = 0
        raw = []
        for entry in self.entries:
            count += entry.reply_count
            if entry.never_decode:
                raw.append(count - 1)
        return count, frozenset(raw)

    def settle(self, replies: list[Any]) -> None:
        """Settle every command with its reply. A callback that raises fails its own alone."""
        entries = self.entries
        settling = zip(entries, replies, strict=True)
        self.entries = []
        if not self.usual:
            run_all(lambda one: _settle(one[0], replies, one[1]), places_of(entries))
            return
        try:
            for entry, reply in settling:
                if entry.callback is None and not isinstance(reply, Exception):  # type: ignore[union-attr]  # usual: a Command
                    entry.outcome = reply  # type: ignore[union-attr]
                else:
                    entry.settle(reply)
        except BaseException:  # a callback was interrupted; the others have their replies, too
            run_all(lambda pair: pair[0].settle(pair[1]), settling)
            raise

    def abort(
        self,
        replies: list[Any],
        written: int,
        cause: BaseException,
        later: Written | None = None,
    ) -> None:
        """Settle what can be told after a connection broke; what may be sent again stays.

        A command whose bytes were not all written certainly did not run: the server discards
        an incomplete command. That, and what only reads, stays in `entries`; but for a read of
        what a later command may have written meanwhile, since its value would come too late.
        With the wire's `retry_writes` everything stays.

        Args:
            replies: those that arrived, from the first command on.
            written: how many of the sealed bytes were handed to the operating system.
            cause: what broke it.
            later: what batches behind this one on the same connection may have written; it
                learns what this one may have written.
        """
        answered = end = 0
        settling: list[tuple[Entry, int]] = []
        unsent: list[Entry] = []
        unknown: list[Entry] = []
        for entry in self.entries:
            position, answered = answered, answered + entry.reply_count
            end += len(entry.packed)
            if answered <= len(replies):
                settling.append((entry, position))
            elif end > written:
                unsent.append(entry)
            else:
                unknown.append(entry)
        again = unknown if self.wire.retry_writes else _repeatable(unknown, later or Written())
        self._sent.update(again)
        repeated = set(again)
        settling += [(entry, _LOST) for entry in unknown if entry not in repeated]

        def settle(one: tuple[Entry, int]) -> None:
            entry, position = one
            if position == _LOST:
                entry.outcome_unknown(reason_of(cause), cause)
            else:
                _settle(entry, replies, position)

        left = iter(settling)
        self.entries = again + unsent
        try:
            for one in left:
                settle(one)
        except BaseException:  # a callback was interrupted; the others are settled, too
            run_all(settle, left)
            raise

    def hand_back(self, cause: BaseException) -> None:
        """Take back from a connection what it will not send again: here, settle it."""
        self.give_up(cause)

    def give_up(self, cause: BaseException) -> None:
        """Settle what `abort` kept, when it will not be sent again."""
        entries, self.entries = self.entries, []
        for entry in entries:
            if entry in self._sent:
                entry.outcome_unknown(reason_of(cause), cause)
            else:
                entry.not_sent(reason_of(cause), cause)

    def drop(self, error: BaseException) -> None:
        """Settle what will not be sent, and tell whoever waits for it."""
        commands = commands_of(self.entries)
        self.give_up(error)
        for command in commands:
            command.run_callbacks()

    def _carry_scripts(self) -> None:
        """Let the first call of each script bring its source along: EVAL instead of EVALSHA.

        So no call can meet a server that does not know it (a SCRIPT FLUSH, a failover, a
        restart), in the order of the program and without a further round trip. Asking again
        after a NOSCRIPT would run the script after commands that came later.
        """
        carried: set[str] = set()
        for entry in self.entries:
            if isinstance(entry, Transaction):
                # What it brings along does not arrive if EXEC refuses it, and what comes before it
                # may be refused while EXEC runs it.
                self._carry(entry.commands, set())
            else:
                self._carry([entry], carried)

    def _carry(self, commands: list[Command], carried: set[str]) -> None:
        for command in commands:
            if isinstance(command, ScriptCall):
                digest = command.script.digest
                command.brings_source = digest not in carried
                args = command.with_source() if command.brings_source else command.args
                command.packed = self.wire.pack(args)
                if command.well_formed:
                    carried.add(digest)


_NONE: frozenset[int] = frozenset()
_LOST = -1  # instead of a reply's place


class Written:
    """What commands whose replies were lost may have written.

    Which of its arguments a command writes is not looked at: each may be a key.
    """

    __slots__ = ("_anything", "_names")

    def __init__(self) -> None:
        self._names: set[bytes] = set()
        self._anything = False  # what a script or the like has written, nobody can tell

    def add(self, commands: list[Command]) -> None:
        """Note what some commands may have written."""
        for command in commands:
            self._anything = self._anything or not (command.traits.keyed or command.read_only)
            self._names.update(_name(arg) for arg in command.args[1:])

    def changes(self, commands: list[Command]) -> bool:
        """Return whether what some commands read may have been changed."""
        if self._anything or not self._names:
            return self._anything
        return any(
            not command.traits.keyed
            or not self._names.isdisjoint(_name(arg) for arg in command.args[1:])
            for command in commands
        )


def _repeatable(unknown: list[Entry], later: Written) -> list[Entry]:
    """Return those of some commands that may have run which can run again, in order."""
    repeatable: list[Entry] = []
    for entry in reversed(unknown):
        commands = commands_of([entry])
        if not entry.read_only:
            later.add(commands)
        elif not later.changes(commands):
            repeatable.append(entry)
    repeatable.reverse()
    return repeatable


def _name(arg: Any) -> bytes:
    return bytes(arg) if isinstance(arg, (bytes, bytearray, memoryview)) else str(arg).encode()


def _settle(entry: Entry, replies: list[Any], position: int) -> None:
    if isinstance(entry, Transaction):
        entry.settle(replies[position : position + entry.reply_count])
    else:
        entry.settle(replies[position])


def plan(entries: list[Entry], *, usual: bool) -> list[list[Batch]]:
    """Return the batches of some entries in program order, in waves.

    The batches of a wave travel at the same time. Two clients of one server each need a
    connection of their own, so where their calls alternate, waves keep the order: a later wave
    leaves after the replies of the one before it.

    Args:
        entries: the commands of all clients.
        usual: as for `Batch`.
    """
    wires: list[Any] = [entry.wire for entry in entries]
    if wires.count(wires[0]) == len(wires):
        return [[Batch(wires[0], entries, usual=usual)]]
    waves: list[list[Batch]] = []
    newest: dict[object, tuple[int, Batch]] = {}  # by server
    servers = {wire: wire.server for wire in set(wires)}
    for wire, entry in zip(wires, entries, strict=True):
        server = servers[wire]
        wave, batch = newest.get(server, (-1, None))
        if batch is None or batch.wire is not wire:
            wave, batch = newest[server] = wave + 1, Batch(wire, [], usual=usual)
            if wave == len(waves):
                waves.append([])
            waves[wave].append(batch)
        batch.entries.append(entry)
    return waves


def resend(entries: Iterable[Entry]) -> None:
    """Tell the scopes of some entries that these are sent again."""
    for command in commands_of(list(entries)):
        command.owner.resent(command)


def settle_lost(entries: list[Entry], cause: BaseException, *, sent: bool) -> None:
    """Settle what an interruption has lost between two places that see to it."""
    for command in commands_of(entries):
        if command.outcome is PENDING:
            if sent:
                command.outcome_unknown(reason_of(cause), cause)
            else:
                command.not_sent(reason_of(cause), cause)


def places_of(entries: list[Entry]) -> Iterator[tuple[Entry, int]]:
    """Yield each entry with the place of its first reply."""
    position = 0
    for entry in entries:
        yield entry, position
        position += entry.reply_count


def commands_of(entries: list[Entry]) -> list[Command]:
    """Return the commands, those inside transactions too, in program order."""
    commands: list[Command] = []
    for entry in entries:
        if isinstance(entry, Transaction):
            commands.extend(entry.commands)
        else:
            commands.append(entry)
    return commands


def reason_of(cause: BaseException) -> str:
    """Return in a few words why a reply was lost, or a command not sent."""
    if isinstance(cause, redis.TimeoutError):
        return "timeout"
    if isinstance(cause, NoLoop):
        return "no event loop"
    if isinstance(cause, (redis.RedisError, OSError)):
        return "connection failure"
    return type(cause).__name__
