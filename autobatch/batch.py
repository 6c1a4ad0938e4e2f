"""The ordered commands that wait for one client. Pure: no socket, no loop, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import redis

from autobatch.command import Command, ScriptCall


class Wire(Protocol):
    """What a batch asks of the connection it will travel on."""

    @property
    def server(self) -> object:
        """Equal for wires that reach the same data, whose order has to be kept."""

    def pack(self, args: tuple[Any, ...]) -> bytes:
        """Return a command's bytes."""

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
        return any(command.never_decode for command in self.commands)

    def settle(self, replies: Sequence[Any]) -> None:
        """Settle every command with the replies to MULTI, to each command, and to EXEC."""
        started, *queued, done = replies
        if isinstance(started, Exception):
            # The server ran what followed outside a transaction, or refused it as well.
            for command in self.commands:
                command.fail(_copy(started))
        elif isinstance(done, Exception):
            for command, reply in zip(self.commands, queued, strict=True):
                command.fail(reply if isinstance(reply, Exception) else _copy(done))
        else:
            raw = self.never_decode
            for command, reply in zip(self.commands, done, strict=True):
                decode = raw and not command.never_decode
                command.settle(self.wire.decode(reply) if decode else reply)

    def not_sent(self, why: str, cause: BaseException | None = None) -> None:
        for command in self.commands:
            command.not_sent(why, cause)

    def outcome_unknown(self, why: str, cause: BaseException | None = None) -> None:
        for command in self.commands:
            command.outcome_unknown(why, cause)


Entry: TypeAlias = Command | Transaction

_MULTI = b"*1\r\n$5\r\nMULTI\r\n"
_EXEC = b"*1\r\n$4\r\nEXEC\r\n"


def _copy(error: Exception) -> Exception:
    """Return an error of its own for one of several commands that share a reason."""
    return type(error)(*error.args)


class Batch:
    """Commands of one wire, in program order, until they are settled.

    Attributes:
        wire: what they travel on.
        entries: what has to be sent still.
    """

    __slots__ = ("_unsent", "_usual", "entries", "wire")

    def __init__(self, wire: Any, entries: list[Entry], *, usual: bool = False) -> None:
        """Take over `entries`; `usual` promises that each is a plain command of one reply."""
        self.wire = wire
        self.entries = entries
        self._usual = usual
        self._unsent = 0

    def seal(self) -> bytes:
        """Return the bytes to write, now that the order is final."""
        if not self._usual:
            self._carry_scripts()
        return b"".join([entry.packed for entry in self.entries])

    def expected(self) -> tuple[int, frozenset[int]]:
        """Return how many replies the sealed bytes will have, and which must not be decoded."""
        if self._usual:
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
        entries, self.entries = self.entries, []
        if not self._usual:
            self._settle_entries(entries, replies)
            return
        for entry, reply in zip(entries, replies, strict=True):
            if entry.callback is None and not isinstance(reply, Exception):  # type: ignore[union-attr]  # usual: a Command
                entry.outcome = reply  # type: ignore[union-attr]
            else:
                entry.settle(reply)

    def abort(self, replies: list[Any], written: int, cause: BaseException) -> None:
        """Settle what can be told after a connection broke; what may be sent again stays.

        A command whose bytes were not all written certainly did not run: the server discards
        an incomplete command. That, and what only reads, stays in `entries`.

        Args:
            replies: those that arrived, from the first command on.
            written: how many of the sealed bytes were handed to the operating system.
            cause: what broke it.
        """
        entries, self.entries = self.entries, []
        answered = end = count = 0
        self._unsent = 0
        for entry in entries:
            answered += entry.reply_count
            end += len(entry.packed)
            if answered <= len(replies):
                count += 1
            elif end > written:
                self.entries.append(entry)
                self._unsent += 1
            elif entry.read_only:
                self.entries.append(entry)
            else:
                entry.outcome_unknown(_reason(cause), cause)
        self._settle_entries(entries[:count], replies)

    def give_up(self, cause: BaseException) -> None:
        """Settle what `abort` kept, when it will not be sent again."""
        entries, self.entries = self.entries, []
        first_unsent = len(entries) - self._unsent
        for entry in entries[:first_unsent]:
            entry.outcome_unknown(_reason(cause), cause)
        for entry in entries[first_unsent:]:
            entry.not_sent(_reason(cause), cause)

    def never_sent(self, cause: BaseException) -> None:
        """Settle everything, when something else kept it from being sent at all."""
        self._unsent = len(self.entries)
        self.give_up(cause)

    def _settle_entries(self, entries: list[Entry], replies: list[Any]) -> None:
        position = 0
        for entry in entries:
            if isinstance(entry, Transaction):
                entry.settle(replies[position : position + entry.reply_count])
            else:
                entry.settle(replies[position])
            position += entry.reply_count

    def _carry_scripts(self) -> None:
        """Let the first call of each script bring its source along: EVAL instead of EVALSHA.

        So no call can meet a server that does not know it (a SCRIPT FLUSH, a failover, a
        restart), in the order of the program and without a further round trip. Asking again
        after a NOSCRIPT would run the script after commands that came later.
        """
        carried = set()
        for command in commands_of(self.entries):
            if isinstance(command, ScriptCall):
                digest = command.script.digest
                args = command.args if digest in carried else command.with_source()
                command.packed = self.wire.pack(args)
                carried.add(digest)


_NONE: frozenset[int] = frozenset()


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
    for wire, entry in zip(wires, entries, strict=True):
        wave, batch = newest.get(wire.server, (-1, None))
        if batch is None or batch.wire is not wire:
            wave, batch = newest[wire.server] = wave + 1, Batch(wire, [], usual=usual)
            if wave == len(waves):
                waves.append([])
            waves[wave].append(batch)
        batch.entries.append(entry)
    return waves


def commands_of(entries: list[Entry]) -> list[Command]:
    """Return the commands, those inside transactions too, in program order."""
    commands: list[Command] = []
    for entry in entries:
        if isinstance(entry, Transaction):
            commands.extend(entry.commands)
        else:
            commands.append(entry)
    return commands


def _reason(cause: BaseException) -> str:
    if isinstance(cause, redis.TimeoutError):
        return "timeout"
    if isinstance(cause, Exception):
        return "connection failure"
    return type(cause).__name__
