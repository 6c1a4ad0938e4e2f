"""The file of a recorded run: a line of JSON for each flush, in the order in which they ended."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import enum
import json
import os
import stat
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn, Self

from autobatch import report
from autobatch.errors import AutobatchError
from autobatch.recorded.masking import Mask, told_of
from autobatch.report import CommandRecord, FlushRecord, Force, Place, Reason, ScopeRecord

_FORMAT = 1


class Arguments(enum.StrEnum):
    """What a recorded run tells of the arguments of commands."""

    NONE = "none"
    """Their names and keys alone: it cannot be replayed."""
    MASKED = "masked"
    """Keys, options, scripts, and numbers such as scores and counts; stand-ins for all values."""
    VALUES = "values"
    """Everything, but of commands such as AUTH and CONFIG. The file is as secret as the data."""

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        raise ValueError(
            f"arguments must be one of {', '.join(map(repr, map(str, cls)))}: {value!r}"
        )


class Unreadable(AutobatchError):
    """A file is no recorded run that this version can read."""


class Recorder:
    """Writes what the flushes of a program do to a file, until `close()` or the end of a block.

    Scopes that are open when it is made are not recorded, nor are processes that are forked: each
    makes a recorder of its own, with a file of its own. Each line is written at once, so what a
    process did until it was killed is in the file, which only its owner can read. When it cannot
    be written any more, that is logged, by the logger `autobatch.report`, and recording ends.
    """

    def __init__(self, path: str | Path, *, arguments: Arguments | str = Arguments.NONE) -> None:
        """Begin a file, in place of one that is there.

        Args:
            path: of the file.
            arguments: what to tell of the arguments of commands: "none", "masked" or "values".

        Raises:
            ValueError: `arguments` is none of these.
            OSError: the file cannot be written.
        """
        self._arguments = Arguments(arguments)
        self._mask = Mask()
        self._begun: set[int] = set()  # the numbers of scopes that the file names
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._file: IO[str] = open(  # noqa: SIM115  # until close()
            path, "w", buffering=1, encoding="utf-8", opener=_private
        )
        with self._lock:  # this line comes first
            self._subscription = report.subscribe(
                self._flushed, on_scope=self._ended, arguments=self._arguments is not Arguments.NONE
            )
            self._write({"autobatch": _FORMAT, "arguments": self._arguments})

    def _flushed(self, flush: FlushRecord) -> None:
        if os.getpid() != self._process:
            return
        with self._lock:
            scope = flush.scope
            if scope.number not in self._begun:
                self._begun.add(scope.number)
                self._write({"scope": scope.number, **_scope_fields(scope)})
            self._write({"flush": scope.number, **self._flush_fields(flush)})

    def _ended(self, scope: ScopeRecord) -> None:
        if os.getpid() != self._process:
            return
        with self._lock:
            if scope.number in self._begun:
                self._begun.discard(scope.number)
                self._write({"end": scope.number, "closed": scope.closed})

    def _flush_fields(self, flush: FlushRecord) -> dict[str, Any]:
        return {
            "reason": flush.reason,
            "place": _place_fields(flush.place),
            "use": flush.use,
            "forced": flush.forced,
            "started": flush.started,
            "finished": flush.finished,
            "round_trips": flush.round_trips,
            "exchanges": flush.exchanges,
            "forces": [_force_fields(force) for force in flush.forces],
            "divided": flush.divided,
            "commands": [self._command_fields(command) for command in flush.commands],
        }

    def _command_fields(self, command: CommandRecord) -> dict[str, Any]:
        fields = {name: getattr(command, name) for name in _COMMAND_FIELDS}
        fields["place"] = _place_fields(command.place)
        fields["callers"] = [_place_fields(place) for place in command.callers]
        args = command.arguments
        if args is None or self._arguments is Arguments.NONE or not told_of(command.name):
            return fields
        if self._arguments is Arguments.MASKED:
            args = self._mask.arguments(command.name, args)
        fields["arguments"] = None if args is None else [_as_json(arg) for arg in args]
        return fields

    def _write(self, fields: dict[str, Any]) -> None:
        if self._file.closed:
            return
        try:
            self._file.write(json.dumps(fields, separators=(",", ":")) + "\n")
        except OSError:  # what came behind half a line could not be read
            self._subscription.cancel()
            with contextlib.suppress(OSError):
                self._file.close()
            raise

    def close(self) -> None:
        """Write what is not written yet, and hear of nothing any more."""
        self._subscription.cancel()
        if os.getpid() == self._process:  # a fork may find the lock taken, for good
            with self._lock:
                self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()


@dataclasses.dataclass
class Run:
    """A recorded run.

    Attributes:
        arguments: what it tells of them.
        scopes: in the order in which their first flush has ended.
        flushes: in the order in which they started.
    """

    arguments: Arguments
    scopes: list[ScopeRecord]
    flushes: list[FlushRecord]


def load(path: str | Path) -> Run:
    """Read a recorded run. A line that was not written whole, at its end, does not count.

    Raises:
        Unreadable: it is no recorded run, or one of a later version.
        OSError: the file cannot be read.
    """
    with Path(path).open(encoding="utf-8", errors="strict") as file:
        try:
            return _parse(file)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            # Not the `repr` of one about bytes, which shows all of them.
            why = f"{type(error).__name__}: {error}"
            raise Unreadable(f"{path} is no recorded run of autobatch: {why}") from error


def _parse(lines: Iterable[str]) -> Run:
    rows = iter(lines)
    head = json.loads(next(rows, "null"))
    if head["autobatch"] > _FORMAT:
        raise ValueError("it was written by a later version of autobatch")
    scopes: dict[int, ScopeRecord] = {}
    flushes: list[FlushRecord] = []
    for row in rows:
        if not row.endswith("\n"):
            break
        fields = json.loads(row)
        if "scope" in fields:
            about = {name: fields[name] for name in ("name", "parent", "opened", "at")}
            scopes[fields["scope"]] = ScopeRecord(**about)
        elif "end" in fields:
            scopes[fields["end"]].closed = fields["closed"]
        else:
            flushes.append(_flush_of(fields, scopes[fields["flush"]]))
    for scope in scopes.values():
        ends = [flush.finished for flush in scope.flushes]
        scope.closed = scope.closed or max(ends, default=scope.opened)
    flushes.sort(key=lambda flush: flush.started)
    return Run(Arguments(head["arguments"]), list(scopes.values()), flushes)


def _flush_of(fields: dict[str, Any], scope: ScopeRecord) -> FlushRecord:
    flush = FlushRecord(
        scope,
        Reason(fields["reason"]),
        _place_of(fields["place"]),
        fields["use"],
        fields["forced"],
        [_command_of(command) for command in fields["commands"]],
        fields["started"],
        fields["finished"],
        fields["round_trips"],
        fields["exchanges"],
        [_force_of(force) for force in fields["forces"]],
        fields["divided"],
    )
    scope.add(flush)
    return flush


def _command_of(fields: dict[str, Any]) -> CommandRecord:
    arguments = fields.pop("arguments", None)
    place = _place_of(fields.pop("place"))
    callers = _places_of(fields.pop("callers"))
    command = CommandRecord(place=place, callers=callers, **fields)
    if arguments is not None:
        command.arguments = tuple(map(_from_json, arguments))
    return command


def _private(path: str, flags: int) -> int:
    file = os.open(path, flags, 0o600)
    try:
        if stat.S_ISREG(os.fstat(file).st_mode):
            os.fchmod(file, 0o600)  # it may have been there before
    except OSError:
        os.close(file)
        raise
    return file


def _scope_fields(scope: ScopeRecord) -> dict[str, Any]:
    return {
        "name": scope.name,
        "parent": scope.parent,
        "opened": scope.opened,
        "at": scope.at,
    }


def _place_fields(place: Place | None) -> list[Any] | None:
    return None if place is None else [place.file, place.line, place.function, place.span]


def _place_of(fields: list[Any] | None) -> Place | None:
    if fields is None:
        return None
    file, line, function, span = fields
    return Place(file, line, function, None if span is None else tuple(span))


def _places_of(fields: list[Any]) -> tuple[Place, ...]:
    return tuple([place for place in map(_place_of, fields) if place is not None])


def _force_fields(force: Force) -> list[Any]:
    callers = [_place_fields(place) for place in force.callers]
    return [_place_fields(force.place), force.use, force.command, callers]


def _force_of(fields: list[Any]) -> Force:
    place, use, command, callers = fields
    return Force(_place_of(place), use, command, _places_of(callers))


def _as_json(arg: Any) -> Any:
    if isinstance(arg, (bytes, bytearray, memoryview)):
        try:
            return {"bytes": bytes(arg).decode("ascii")}
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(bytes(arg)).decode()}
    if isinstance(arg, float):
        return {"float": repr(arg)}  # JSON has no infinity
    return arg if isinstance(arg, int) else str(arg)


def _from_json(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, text),) = value.items()
    kinds: dict[str, Any] = {"bytes": str.encode, "base64": base64.b64decode, "float": float}
    return kinds[kind](text)


_COMMAND_FIELDS = (
    "name",
    "key",
    "called",
    "size",
    "server",
    "read_only",
    "transaction",
    "sent",
    "error",
)
