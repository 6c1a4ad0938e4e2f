"""Writing and reading many commands at once on redis-py's connections.

Every private name of redis-py is in this module. Where one is missing (another version, no
hiredis, a parser of the user's own), the public `send_packed_command` and `read_response` do the
same, more slowly.
"""

from __future__ import annotations

import asyncio
import codecs
import functools
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Any

import redis
from redis.connection import AbstractConnection, PythonRespSerializer
from redis.exceptions import DataError

from autobatch.command import Command

hiredis: Any
_HiredisParser: Any
NOT_ENOUGH_DATA: Any
PushNotification: Any
try:
    import hiredis
    from redis._parsers.hiredis import NOT_ENOUGH_DATA, _HiredisParser
except ImportError:  # redis-py without hiredis, or with its parser elsewhere
    hiredis = _HiredisParser = NOT_ENOUGH_DATA = None
PushNotification = getattr(hiredis, "PushNotification", None)

_LIBRARIES = {"redis", "valkey"}
_RECORD = 16 * 1024  # the most that one record of TLS carries

Pack = Callable[[tuple[Any, ...]], bytes]


class UnexpectedReply(Exception):
    """All replies were read, and there is one more: the connection cannot be used any longer."""


class BrokenWrite(Exception):
    """A write ended early.

    Attributes:
        written: how many bytes were handed to the operating system.
        cause: why, as redis-py's `send_packed_command` would say it.
    """

    def __init__(self, written: int, cause: BaseException) -> None:
        super().__init__(written, cause)
        self.written = written
        self.cause = cause


def packers(pool: Any, *, own_encoding: bool = False) -> tuple[Pack, Pack]:
    """Return two functions that pack a command as connections of `pool` would.

    The first takes all that redis-py takes, the name as one argument, and raises DataError. The
    second is the fastest there is, for arguments of the types in `PACKED_FAST`, and integers
    between `LOWEST` and `HIGHEST`.

    Args:
        pool: of connections.
        own_encoding: they write text in the client's encoding, as asyncio's do. Synchronous ones
            with hiredis write UTF-8, whatever the client reads.
    """
    custom = pool.connection_kwargs.get("command_packer")
    encoder = pool.get_encoder()  # its class may be the program's own
    utf8 = not own_encoding or (
        type(encoder).encode.__module__.partition(".")[0] in _LIBRARIES
        and codecs.lookup(encoder.encoding).name == "utf-8"
        and encoder.encoding_errors == "strict"
    )
    if hiredis is not None and custom is None and utf8:
        return _pack_with_hiredis, hiredis.pack_command
    if custom is None:
        custom = PythonRespSerializer(1 << 62, encoder.encode)

    def pack(args: tuple[Any, ...]) -> bytes:
        return b"".join(custom.pack(*args))

    return pack, pack


def encoder_of(pool: Any) -> Any:
    """Return the encoder of what synchronous connections of `pool` write: see `packers`."""
    encoder = pool.get_encoder()
    if hiredis is None or pool.connection_kwargs.get("command_packer") is not None:
        return encoder
    return type(encoder)("utf-8", "strict", encoder.decode_responses)


# What hiredis packs without harm. It ignores the steps of a memoryview, so it reads beyond its
# buffer, and integers that Python refuses to print crash it.
PACKED_FAST = frozenset({str, bytes, float})
# Between these, integers have fewer digits than Python prints by default.
HIGHEST = 1 << 14_000
LOWEST = -HIGHEST


def _pack_with_hiredis(args: tuple[Any, ...]) -> bytes:
    packed: bytes = hiredis.pack_command(tuple(map(_harmless, args)))
    return packed


def _harmless(arg: Any) -> Any:
    """Return an argument as hiredis may have it."""
    kind = type(arg)
    if kind in PACKED_FAST or (kind is int and LOWEST < arg < HIGHEST):
        return arg
    if isinstance(arg, (bytearray, memoryview)):
        return bytes(arg)
    if kind is int:
        return repr(arg)  # which raises ValueError, unless the program has asked for more digits
    if isinstance(arg, int) or not isinstance(arg, (str, bytes, float)):
        raise DataError(
            f"Invalid input of type: {kind.__name__!r}. "
            "Convert to a bytes, string, int or float first."
        )
    return arg


def close_idle(pool: Any) -> Any:
    """Close the connections of a pool that nobody uses; of asyncio's, once that is awaited."""
    return pool.disconnect(False)  # noqa: FBT003  # not every pool gives it a name


def write(connection: AbstractConnection, payload: bytes) -> None:
    """Write all of `payload`.

    Raises:
        BrokenWrite: the connection failed; it has to be closed.
    """
    connection = getattr(connection, "_conn", connection)  # behind a client-side cache
    written = 0
    try:
        if connection.health_check_interval:
            connection.check_health()
        sock: Any = getattr(connection, "_sock", None)
        if not hasattr(sock, "send"):  # none, or what stands in for one
            written = len(payload)  # nobody will tell
            connection.send_packed_command([payload], check_health=False)
            return
        # Over TLS, send() that fails does not tell of what has left: so, a record at a time.
        most = _RECORD if isinstance(sock, ssl.SSLSocket) else len(payload)
        if len(payload) <= most:
            written = sock.send(payload)
        if written < len(payload):
            view = memoryview(payload)
            while written < len(payload):
                written += sock.send(view[written : written + most])
    except Exception as error:
        cause = _cause(error, "writing to")
        if cause is None:
            raise
        raise BrokenWrite(written, cause) from error


def read(
    connection: AbstractConnection, count: int, raw: frozenset[int], replies: list[Any]
) -> None:
    """Append `count` replies to `replies`, in order; an error reply is an exception among them.

    Args:
        connection: where they arrive.
        count: how many were asked for.
        raw: the positions of the replies that must stay bytes.
        replies: keeps what has arrived if this raises.

    Raises:
        redis.ConnectionError: the connection broke; it has to be closed.
        redis.TimeoutError: nothing came for `socket_timeout` seconds; likewise.
    """
    connection = getattr(connection, "_conn", connection)
    try:
        parser = getattr(connection, "_parser", None)
        # A subclass may know more errors, as that of clusters, or read in its own way.
        reader = getattr(type(parser), "read_response", None)
        kind: Any = type(connection)
        if _reads_in_its_own_way(kind):
            _read_one_by_one(connection, count, raw, replies)
        elif _HiredisParser is not None and reader is _HiredisParser.read_response:
            read_with_hiredis(parser, count, raw, replies)
        elif hasattr(connection, "parser_for_many"):  # of another library than redis-py
            own = connection.parser_for_many()
            if own is None:
                _read_one_by_one(connection, count, raw, replies)
            else:
                read_with_hiredis(own, count, raw, replies)
        else:
            _read_one_by_one(connection, count, raw, replies)
    except Exception as error:
        cause = _cause(error, "reading from")
        if cause is None or cause is error:
            raise
        raise cause from error
    if connection.health_check_interval:
        connection.next_health_check = time.monotonic() + connection.health_check_interval


@functools.cache  # bounded by the number of classes of connections
def _reads_in_its_own_way(kind: Any) -> bool:
    """Return whether a class of connections has a `read_response` from outside of its library."""
    module: str = getattr(kind.read_response, "__module__", None) or ""
    return module.partition(".")[0] not in _LIBRARIES


def _cause(error: Exception, doing: str) -> redis.RedisError | None:
    """Return what redis-py would raise where it met `error`, if that was the connection's."""
    if isinstance(error, redis.RedisError):
        return error
    if isinstance(error, TimeoutError):
        return redis.TimeoutError(f"Timeout {doing} socket")
    if isinstance(error, OSError):
        return redis.ConnectionError(f"Error while {doing} socket: {error}")
    return closed_elsewhere(error)


def closed_elsewhere(error: Exception) -> redis.ConnectionError | None:
    """Return what to say instead if another thread has closed a connection that is in use.

    Then redis-py meets None, or a socket without a number, where its socket or its parser was.
    `close()` does that, and in redis-py 7.0 every look at the cluster, also to connections that
    are being opened.
    """
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    module: str = "" if at is None else at.tb_frame.f_globals.get("__name__", "")
    library, _, rest = module.partition(".")
    met_none = isinstance(error, AttributeError) and error.obj is None
    # In the parsers alone: elsewhere, an option of the wrong type is the likelier reason.
    no_socket = rest.startswith("_parsers.") and type(error) in {TypeError, ValueError}
    if library in _LIBRARIES and (met_none or no_socket):
        return redis.ConnectionError("Connection closed by another thread")
    return None


def read_with_hiredis(parser: Any, count: int, raw: frozenset[int], replies: list[Any]) -> None:
    """Do that on a parser that uses hiredis."""
    reader = parser._reader
    if reader is None:  # another thread has closed the client
        raise redis.ConnectionError("Connection closed by another thread")
    gets = reader.gets
    push_type = parser._hiredis_PushNotificationType
    append = replies.append
    missing = count
    while missing:
        try:
            reply = gets(len(replies) not in raw) if raw else gets()
        except UnicodeDecodeError as error:
            reply = error  # hiredis has taken the whole reply: the next ones are in step
        if reply is NOT_ENOUGH_DATA:
            parser.read_from_socket()
        elif type(reply) is push_type:
            parser.handle_push_response(reply)
        else:
            append(reply)
            missing -= 1
    while reader.has_data():
        reply = gets()
        if reply is NOT_ENOUGH_DATA:
            break
        if type(reply) is not push_type:  # nobody asked for it, so it must reach nobody
            raise UnexpectedReply
        parser.handle_push_response(reply)


def _read_one_by_one(
    connection: AbstractConnection, count: int, raw: frozenset[int], replies: list[Any]
) -> None:
    for position in range(count):
        try:
            reply = connection.read_response(
                disable_decoding=position in raw, disconnect_on_error=False
            )
        except redis.ResponseError as error:
            reply = error
        except UnicodeDecodeError as error:
            # redis-py's parsers in Python have put it back: take it as it is.
            connection.read_response(disable_decoding=True, disconnect_on_error=False)
            reply = error
        replies.append(reply)


async def _reply_to(command: Command, connection: Any) -> Any:
    try:
        return await connection.read_response(disable_decoding=command.never_decode)
    except (redis.ConnectionError, redis.TimeoutError):
        raise
    except (redis.ResponseError, UnicodeDecodeError) as error:
        return error


async def _send_one(connection: Any, command: Command, *, ask: bool) -> Any:
    task = asyncio.current_task()
    cancelled = task.cancelling() if task is not None else 0
    if ask:
        await connection.send_command("ASKING")
        await connection.read_response()
    await connection.send_packed_command([command.packed])
    if task is not None and task.cancelling() > cancelled:
        # Python 3.11's wait_for(), in redis-py, forgets a cancellation that comes when it is
        # done. See https://github.com/python/cpython/issues/86296.
        await connection.disconnect(nowait=True)
        raise asyncio.CancelledError
    reply = await _reply_to(command, connection)
    if refused(connection, [command], [reply]):
        raise reply
    return reply


async def exchange_one(connection: Any, command: Command, *, ask: bool = False) -> None:
    """Send one command on an asyncio connection and settle it; with `ask` behind an ASKING.

    It is sent again as the connection's retry policy says, if it only reads or the wire retries
    writes, too, or if the server refused it with an error that the policy names.
    """
    repeatable = command.read_only or command.wire.retry_writes
    lost: list[Exception] = []

    async def attempt() -> Any:
        try:
            return await _send_one(connection, command, ask=ask)
        except (redis.RedisError, OSError) as error:
            if repeatable or isinstance(error, redis.ResponseError):
                raise
            lost.append(error)

    async def forget_failure(_: Exception) -> None:
        await connection.disconnect()

    try:
        reply = await connection.retry.call_with_retry(attempt, forget_failure)
        if lost:
            raise lost[0]
    except redis.ResponseError as error:
        command.settle(error)
    except (redis.RedisError, OSError) as error:
        if isinstance(error.__context__, redis.ReadOnlyError):  # Sentinel's: no primary any more
            command.not_sent("connection failure", error)
        else:
            command.outcome_unknown("connection failure", error)
    else:
        command.settle(reply)


def take_over(connection: Any, protocol: asyncio.BaseProtocol) -> tuple[Any, Any]:
    """Let `protocol` have the transport of a connection that redis-py has opened and greeted.

    Returns:
        The transport, and the hiredis reader that continues where redis-py's parser stopped.

    Raises:
        ImportError: there is no hiredis.
        TypeError: the connection is none over a transport of asyncio's.
    """
    if hiredis is None:
        raise ImportError("autobatch.asyncio needs hiredis: pip install 'redis[hiredis]'")
    parser = connection._parser
    reader = getattr(parser, "_reader", None)
    if not isinstance(reader, hiredis.Reader):
        options: dict[str, Any] = {}
        if connection.encoder.decode_responses:
            options["encoding"] = connection.encoder.encoding
            options["errors"] = connection.encoder.encoding_errors
        reader = hiredis.Reader(
            protocolError=redis.InvalidResponse,
            replyError=_reply_error(connection, parser),
            notEnoughData=NOT_ENOUGH_DATA,
            **options,
        )
    transport = connection._writer.transport
    if not hasattr(transport, "set_protocol"):
        raise TypeError(
            "autobatch.asyncio needs the transport of an event loop, and a "
            f"{type(connection).__name__} has none: take a real server, or a plain client"
        )
    transport.set_protocol(protocol)
    early = bytes(connection._reader._buffer)  # came together with the last reply to the greeting
    if early:
        reader.feed(early)
    return transport, reader


def _reply_error(connection: Any, parser: Any) -> Callable[[str], BaseException]:
    adopt = getattr(connection, "adopt", None)  # for another library than redis-py
    if adopt is None:
        parse: Callable[[str], BaseException] = parser.parse_error
        return parse
    return lambda text: adopt(parser.parse_error(text))


async def pushed(connection: Any, reply: Any) -> None:
    """Let redis-py handle what the server sent without being asked."""
    if not hasattr(connection, "adopt"):
        await connection._parser.handle_push_response(reply)


def is_closed(connection: Any) -> bool:
    """Return whether the server has closed an idle asyncio connection."""
    return connection._reader is None or bool(connection._reader.at_eof())


def forget(connection: Any) -> None:
    """Make redis-py's connection forget the transport that was taken over."""
    connection._reader = connection._writer = None


def tries_again(connection: Any, error: BaseException) -> bool:
    """Return whether the connection's retry policy has to do with an error."""
    return isinstance(error, connection.retry._supported_errors)


def refused(connection: Any, commands: Iterable[Command], replies: list[Any]) -> bool:
    """Return whether all commands were refused with errors that the retry policy names.

    What may have failed halfway, as a script may, was not refused.
    """
    return all(
        isinstance(reply, redis.ResponseError) and tries_again(connection, reply)
        for reply in replies
    ) and all(
        command.read_only or command.traits.all_or_nothing or command.wire.retry_writes
        for command in commands
    )


def retries(connection: Any) -> int:
    """Return how often the connection's retry policy sends again; endlessly if negative."""
    times: int = connection.retry._retries
    return times


def backoff(connection: Any, failures: int) -> float:
    """Return how many seconds the connection's retry policy waits after so many failures."""
    seconds: float = connection.retry._backoff.compute(failures)
    return seconds


def decoder(encoder: Any) -> Callable[[Any], Any]:
    """Return the function that decodes a reply that was read as bytes."""

    def decode(reply: Any) -> Any:
        if isinstance(reply, (list, set, tuple)):
            return type(reply)(decode(item) for item in reply)
        if isinstance(reply, dict):
            return {decode(key): decode(value) for key, value in reply.items()}
        return encoder.decode(reply)

    return decode
