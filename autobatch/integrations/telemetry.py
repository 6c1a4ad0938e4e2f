"""What flushes are called by the database conventions of OpenTelemetry.

Source: https://opentelemetry.io/docs/specs/semconv/db/redis/ and .../db/database-spans/.
"""

from __future__ import annotations

import re
import time
from typing import NamedTuple

from redis import exceptions

from autobatch.report import CommandRecord, FlushRecord

# What redis-py leaves of the prefixes of errors: the others it turns into classes. Words in
# capitals begin other texts, too ("DB index is out of range"), whose "ERR" it has taken away.
_PREFIXES_TABLE = """
BUSY BUSYGROUP BUSYKEY DENIED INPROG IOERR MISCONF NOGOODSLAVE NOGROUP NOMASTERLINK NOPROTO
NOQUORUM NOREPLICAS NOTBUSY UNBLOCKED UNKILLABLE WRONGTYPE
"""
_PREFIXES = frozenset(_PREFIXES_TABLE.split())
_PREFIX_OF_CLASS: dict[type[BaseException] | None, str] = {
    exceptions.AskError: "ASK",
    exceptions.BusyLoadingError: "LOADING",
    exceptions.ClusterCrossSlotError: "CROSSSLOT",
    exceptions.ClusterDownError: "CLUSTERDOWN",
    exceptions.ExecAbortError: "EXECABORT",
    exceptions.MasterDownError: "MASTERDOWN",
    exceptions.MovedError: "MOVED",
    exceptions.NoPermissionError: "NOPERM",
    exceptions.NoScriptError: "NOSCRIPT",
    exceptions.OutOfMemoryError: "OOM",
    exceptions.ReadOnlyError: "READONLY",
    exceptions.TryAgainError: "TRYAGAIN",
}
_CAPITALS = re.compile(r"[A-Z][A-Z0-9_]+\b")


class Server(NamedTuple):
    """Where commands went: an address, a port if it has one, and the number of a database."""

    address: str
    port: int | None
    database: str | None


def operation_of(flush: FlushRecord) -> str:
    """Return the name of a flush's operation, such as "GET", "PIPELINE GET" or "MULTI"."""
    names = {command.name for command in flush.commands}
    if len(flush.commands) == 1 and flush.commands[0].transaction is None:
        return names.pop()
    transactions = {command.transaction for command in flush.commands}
    kind = "MULTI" if len(transactions) == 1 and None not in transactions else "PIPELINE"
    return f"{kind} {names.pop()}" if len(names) == 1 else kind


def server_of(flush: FlushRecord) -> Server | None:
    """Return where a flush went, or None if it went to several servers."""
    servers = {command.server for command in flush.commands}
    if len(servers) > 1:
        return None
    where, slash, database = servers.pop().rpartition("/")
    if not slash:  # of a cluster, which has no databases
        where, database = database, ""
    address, _, port = where.rpartition(":")
    if not port.isdigit():  # a Unix socket
        return Server(where, None, database or None)
    return Server(address, int(port), database or None)


def failed_command(flush: FlushRecord) -> CommandRecord | None:
    """Return the first command of a flush that failed."""
    return next(iter(flush.errors), None)


def status_of(command: CommandRecord) -> str | None:
    """Return the prefix of a server's error, such as "WRONGTYPE", if it can be told."""
    if command.error_type is not exceptions.ResponseError:
        return _PREFIX_OF_CLASS.get(command.error_type)
    _, _, text = (command.error or "").partition(": ")
    found = _CAPITALS.match(text)
    if found is None:
        return "ERR"
    return found[0] if found[0] in _PREFIXES else None


def error_type_of(command: CommandRecord) -> str:
    """Return what a command failed with: a server's prefix, or the full name of a class."""
    status = status_of(command)
    if status is not None:
        return status
    kind = command.error_type
    return "_OTHER" if kind is None else f"{kind.__module__}.{kind.__qualname__}"


def epoch_nanoseconds(moment: float) -> int:
    """Return when something was: from `time.perf_counter()` to nanoseconds since 1970."""
    return time.time_ns() - round((time.perf_counter() - moment) * 1e9)
