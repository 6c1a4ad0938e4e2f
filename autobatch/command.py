"""One Redis command, and the table that says how each command travels."""

from __future__ import annotations

import enum
import os
import pathlib
import re
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import redis

from autobatch.errors import NotSent, OutcomeUnknown
from autobatch.promise import (
    PENDING,
    Failure,
    Origin,
    Owner,
    Promise,
    printable,
    without_frame,
)


class Travel(enum.Enum):
    """How a command reaches the server."""

    BATCHED = "batched"
    ALONE = "alone"
    """On a connection that it has for itself, after what waits was flushed."""


class Traits:
    """What autobatch has to know of a command.

    Attributes:
        name: upper case, a subcommand after one space.
        travel: how it travels, or a function of its arguments that tells.
        read_only: it changes nothing, so it may be sent again when its reply was lost.
        keyed: its first argument is a key, which may be shown. Other arguments may be secret.
        script: the command that takes a script's source where this one takes its digest.
    """

    __slots__ = ("keyed", "name", "read_only", "script", "travel")

    def __init__(
        self,
        name: str,
        *,
        travel: Travel | Callable[[tuple[Any, ...]], Travel] = Travel.BATCHED,
        read_only: bool = False,
        keyed: bool = False,
    ) -> None:
        self.name = name
        self.travel = travel
        self.read_only = read_only
        self.keyed = keyed
        self.script: str | None = _SCRIPT_BY_DIGEST.get(name)

    def travel_of(self, args: tuple[Any, ...]) -> Travel:
        """Return how a call with these arguments travels; the name is the first of them."""
        return self.travel if isinstance(self.travel, Travel) else self.travel(args)

    @property
    def all_or_nothing(self) -> bool:
        """Whether it has changed nothing if it was answered with an error; nobody knows of all."""
        return self.name in TABLE and self.name not in _FAILS_HALFWAY


def _unless_blocking(first_option: int) -> Callable[[tuple[Any, ...]], Travel]:
    """XREAD and XREADGROUP wait only if they are told to, by an option before STREAMS."""

    def travel(args: tuple[Any, ...]) -> Travel:
        for arg in args[first_option:]:
            option = _text(arg).upper()
            if option == "BLOCK":
                return Travel.ALONE
            if option == "STREAMS":
                break
        return Travel.BATCHED

    return travel


def _unless_other_database(args: tuple[Any, ...]) -> Travel:
    """COPY reaches into another database only with its option DB."""
    return Travel.ALONE if any(_text(arg).upper() == "DB" for arg in args[3:]) else Travel.BATCHED


def _text(arg: object) -> str:
    if isinstance(arg, (bytes, bytearray, memoryview)):
        return bytes(arg).decode("latin-1")
    return arg if isinstance(arg, str) else ""


# The table. Names, and which of them only read, are what COMMAND of Valkey 9.1.2 answers (flag
# "readonly"); tests/test_command.py holds them against the server that runs the tests.
# A command that is not listed (a module's, a future server's) is batched, and counts as a write.

_READS_KEY = """
BITCOUNT BITFIELD_RO BITPOS DUMP EXISTS EXPIRETIME GEODIST GEOHASH GEOPOS GEORADIUS_RO
GEORADIUSBYMEMBER_RO GEOSEARCH GET GETBIT GETRANGE HEXISTS HEXPIRETIME HGET HGETALL HKEYS HLEN
HMGET HPEXPIRETIME HPTTL HRANDFIELD HSCAN HSTRLEN HTTL HVALS LCS LINDEX LLEN LPOS LRANGE MGET
PEXPIRETIME PFCOUNT PTTL SCARD SDIFF SINTER SISMEMBER SMEMBERS SMISMEMBER SORT_RO SRANDMEMBER
SSCAN STRLEN SUBSTR SUNION TOUCH TTL TYPE XLEN XPENDING XRANGE XREVRANGE ZCARD ZCOUNT ZLEXCOUNT
ZMSCORE ZRANDMEMBER ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANK ZREVRANGE ZREVRANGEBYLEX
ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE
MEMORY|USAGE OBJECT|ENCODING OBJECT|FREQ OBJECT|IDLETIME OBJECT|REFCOUNT XINFO|CONSUMERS
XINFO|GROUPS XINFO|STREAM
"""
_READS = """
DBSIZE EVAL_RO EVALSHA_RO FCALL_RO KEYS LOLWUT RANDOMKEY SCAN SINTERCARD XREAD ZDIFF ZINTER
ZINTERCARD ZUNION
"""
# Without the flag, since they touch no data; just as harmless to repeat.
_HARMLESS = """
COMMAND COMMAND|COUNT COMMAND|DOCS COMMAND|GETKEYS COMMAND|GETKEYSANDFLAGS COMMAND|INFO
COMMAND|LIST CONFIG|GET ECHO FUNCTION|DUMP FUNCTION|LIST FUNCTION|STATS INFO LASTSAVE
PING PUBSUB|CHANNELS PUBSUB|NUMPAT PUBSUB|NUMSUB PUBSUB|SHARDCHANNELS PUBSUB|SHARDNUMSUB ROLE
SCRIPT|EXISTS SLOWLOG|GET SLOWLOG|LEN TIME
"""
_WRITES_KEY = """
APPEND BITFIELD DECR DECRBY DEL DELIFEQ EXPIRE EXPIREAT GEOADD GEORADIUS GEORADIUSBYMEMBER
GEOSEARCHSTORE GETDEL GETEX GETSET HDEL HEXPIRE HEXPIREAT HGETDEL HGETEX HINCRBY HINCRBYFLOAT
HMSET HPERSIST HPEXPIRE HPEXPIREAT HSET HSETEX HSETNX INCR INCRBY INCRBYFLOAT LINSERT LMOVE LPOP
LPUSH LPUSHX LREM LSET LTRIM MSET MSETNX PERSIST PEXPIRE PEXPIREAT PFADD PFMERGE PSETEX RENAME
RENAMENX RESTORE RPOP RPOPLPUSH RPUSH RPUSHX SADD SDIFFSTORE SET SETBIT SETEX SETNX SETRANGE
SINTERSTORE SMOVE SORT SPOP SREM SUNIONSTORE UNLINK XACK XADD XAUTOCLAIM XCLAIM XDEL XSETID XTRIM
ZADD ZDIFFSTORE ZINCRBY ZINTERSTORE ZPOPMAX ZPOPMIN ZRANGESTORE ZREM ZREMRANGEBYLEX
ZREMRANGEBYRANK ZREMRANGEBYSCORE ZUNIONSTORE
XGROUP|CREATE XGROUP|CREATECONSUMER XGROUP|DELCONSUMER XGROUP|DESTROY XGROUP|SETID
"""
# Known by name, so that errors can tell their subcommand.
_WRITES = """
CONFIG|RESETSTAT CONFIG|REWRITE CONFIG|SET EVAL EVALSHA FUNCTION|DELETE FUNCTION|FLUSH FUNCTION|LOAD
FUNCTION|RESTORE
"""
# Blocking, by the server's flag; WAIT also counts the writes of its own connection only.
_BLOCKING = """
BLMOVE BLMPOP BLPOP BRPOP BRPOPLPUSH BZMPOP BZPOPMAX BZPOPMIN WAIT WAITAOF
"""
# They change the connection they run on, and a batch shares one with others.
_CONNECTION = """
ASKING AUTH CLIENT|CACHING CLIENT|GETNAME CLIENT|GETREDIR CLIENT|ID CLIENT|INFO CLIENT|KILL
CLIENT|LIST CLIENT|NO-EVICT CLIENT|NO-TOUCH CLIENT|PAUSE CLIENT|REPLY CLIENT|SETINFO
CLIENT|SETNAME CLIENT|TRACKING CLIENT|TRACKINGINFO CLIENT|UNBLOCK CLIENT|UNPAUSE DISCARD EXEC
HELLO HIMPORT MONITOR MULTI PSUBSCRIBE PUNSUBSCRIBE QUIT READONLY READWRITE RESET SELECT
SSUBSCRIBE SUBSCRIBE SUNSUBSCRIBE UNSUBSCRIBE UNWATCH WATCH
"""
# They stop, replace or suspend the server, or act across databases, whose order only a flush
# keeps. SCRIPT FLUSH forgets what an earlier command of the batch has brought along, and
# redis-py's Script needs the digest of SCRIPT LOAD at once.
_SERVER = """
DEBUG FAILOVER FLUSHALL FUNCTION|KILL MIGRATE MOVE PSYNC REPLCONF REPLICAOF SAVE SCRIPT|DEBUG
SCRIPT|FLUSH SCRIPT|KILL SCRIPT|LOAD SHUTDOWN SLAVEOF SWAPDB SYNC
"""
# Every subcommand of these travels alone.
_ALONE_CONTAINERS = frozenset({"ACL", "CLIENT", "CLUSTER", "DEBUG", "HIMPORT", "MODULE"})

# They may fail when they have written already: scripts, and MIGRATE, which moves key by key.
_FAILS_HALFWAY = frozenset({"EVAL", "EVALSHA", "MIGRATE"})

# What replaces a script's digest by its source: see Batch._carry_scripts.
_SCRIPT_BY_DIGEST = {"EVALSHA": "EVAL", "EVALSHA_RO": "EVAL_RO"}


def _build_table() -> dict[str, Traits]:
    table: dict[str, Traits] = {}

    def put(names: str, **traits: Any) -> None:
        for word in names.split():
            name = word.replace("|", " ")
            table[name] = Traits(name, **traits)

    put(_READS_KEY, read_only=True, keyed=True)
    put(_READS + _HARMLESS, read_only=True)
    put(_WRITES_KEY, keyed=True)
    put(_BLOCKING + _CONNECTION + _SERVER, travel=Travel.ALONE)
    put(_WRITES)
    put("XREAD", travel=_unless_blocking(1), read_only=True)
    put("XREADGROUP", travel=_unless_blocking(4))  # after GROUP, a group, a consumer
    put("COPY", travel=_unless_other_database, keyed=True)
    return table


TABLE = _build_table()
# Those about which nothing is special, in redis-py's own spelling: one look on the hot path.
PLAIN = {
    name: traits
    for name, traits in TABLE.items()
    if traits.travel is Travel.BATCHED and " " not in name and traits.script is None
}


def spelled_out(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments with one word each: redis-py splits the name at its spaces."""
    name = args[0]
    if isinstance(name, str):
        words = name.encode().split()  # at ASCII's whitespace only
        if len(words) == 1 and len(words[0]) == len(name):
            return args
        return (*(word.decode() for word in words), *args[1:])
    return (*name.split(), *args[1:]) if b" " in name else args


def traits_of(args: tuple[Any, ...]) -> Traits:
    """Return the traits of a command that was spelled out; it may be bytes, or lower case."""
    name = _text(args[0]).upper()
    subcommand = _text(args[1]).upper() if len(args) > 1 else ""
    if subcommand:
        traits = TABLE.get(f"{name} {subcommand}")
        if traits is not None:
            return traits
    if name in _ALONE_CONTAINERS:
        return Traits(name, travel=Travel.ALONE)
    return TABLE.get(name) or Traits(name)


class Script:
    """A Lua script whose source is known.

    Attributes:
        digest: SHA1 of the source, in hexadecimal, as EVALSHA takes it.
        source: the script's text.
    """

    __slots__ = ("digest", "source")

    def __init__(self, digest: str, source: str | bytes) -> None:
        self.digest = digest
        self.source = source


class Command(Promise):
    """One command of one client, and the promise of its reply.

    Attributes:
        traits: what the table says of it.
        args: its arguments, one word of the name after the other.
        options: redis-py's options of the reply, for the response callback.
        packed: its bytes on the wire.
        callback: redis-py's response callback of the client that called it.
        wire: what it travels on.
        code, instruction: where the program called it.
    """

    __slots__ = (
        "args",
        "callback",
        "code",
        "instruction",
        "options",
        "packed",
        "traits",
        "wire",
    )

    reply_count = 1

    def __init__(
        self,
        traits: Traits,
        args: tuple[Any, ...],
        options: dict[str, Any],
        packed: bytes,
        callback: Callable[..., Any] | None,
        wire: Any,
        owner: Owner,
        caller: FrameType | None,
    ) -> None:
        self.outcome = PENDING
        self.owner = owner
        self.number = 0
        self.callbacks = None
        self.traits = traits
        self.args = args
        self.options = options
        self.packed = packed
        self.callback = callback
        self.wire = wire
        # Code and instruction, not the line: that is looked up if it is ever asked for.
        self.code: CodeType | None
        self.instruction = 0
        if caller is None:
            self.code = None
        else:
            self.code = caller.f_code
            self.instruction = caller.f_lasti

    def settle(self, reply: Any) -> None:
        """Settle with the server's reply, as redis-py's parse_response would give it."""
        if isinstance(reply, Exception):
            if _EMPTY_RESPONSE in self.options and isinstance(reply, redis.ResponseError):
                self.outcome = self.options[_EMPTY_RESPONSE]
            else:
                self.fail(reply)
            return
        if self.callback is not None:
            options = self.options
            if options and not _REPLY_OPTIONS.isdisjoint(options):
                options = {k: v for k, v in options.items() if k not in _REPLY_OPTIONS}
            try:
                reply = self.callback(reply, **options) if options else self.callback(reply)
            except BaseException as error:
                without_frame(error)
                self.fail(error)
                if isinstance(error, (KeyboardInterrupt, SystemExit)):
                    raise
                return
        self.outcome = reply

    def fail(self, error: BaseException) -> None:
        """Settle with an error, which surfaces at the end of the scope if nobody looks at it."""
        adopt = getattr(self.wire, "adopt", None)  # for another library than redis-py
        if adopt is not None:
            adopt(error)
        self.outcome = failure = Failure(error, self)
        self.owner.remember(failure)

    def not_sent(self, why: str, cause: BaseException | None = None) -> None:
        """Settle as certainly not run."""
        self.fail(NotSent.because(f"{self.describe()} was not sent: {why}", cause))

    def drop(self, why: str) -> None:
        """Settle as not sent because the program said so, which is no error of its own."""
        self.not_sent(why)
        self.outcome.seen = True
        self.run_callbacks()

    def outcome_unknown(self, why: str, cause: BaseException | None = None) -> None:
        """Settle as perhaps run."""
        message = f"{self.describe()} was sent, but its reply was lost ({why})"
        if self.wire.retry_writes:
            message += "; it may have run, once or several times"
        elif not self.read_only:
            message += "; it may have run, so it was not sent again"
        self.fail(OutcomeUnknown.because(message, cause))

    @property
    def asynchronous(self) -> bool:
        answer: bool = self.wire.asynchronous
        return answer

    def doubt(self) -> None:
        if self.outcome is PENDING and self.wire.asynchronous:
            self.wire.doubt()

    @property
    def read_only(self) -> bool:
        """Whether it may be sent again after its reply was lost."""
        return self.traits.read_only

    @property
    def never_decode(self) -> bool:
        """Whether redis-py wants the reply as bytes, whatever the client decodes."""
        return NEVER_DECODE in self.options

    def describe(self) -> str:
        """Return the name and, where the first argument is a key, the key, truncated."""
        traits = self.traits
        at = traits.name.count(" ") + 1
        keys = self.args[at : at + 1]
        if not traits.keyed or not keys:
            return traits.name
        shown = printable(_shown(keys[0]))
        if len(shown) > _SHOWN_KEY_LENGTH:
            shown = shown[:_SHOWN_KEY_LENGTH] + "..."
        return f"{traits.name} {shown}"

    def text_of(self, error: BaseException) -> str:
        text = str(error)
        if not isinstance(error, redis.ResponseError) or text.startswith(_SAYS_NOTHING):
            return text
        # The server repeats arguments, and so do scripts.
        text = text.partition(", with args beginning with")[0]
        at = self.traits.name.count(" ") + 1 + self.traits.keyed
        hidden = {
            word.lower()
            for arg in self.args[at : at + _MASKED_ARGUMENTS]
            for word in _WORD.findall(
                _shown(arg[:_MASKED_LENGTH] if isinstance(arg, (str, bytes)) else arg)
            )
        }

        def masked(match: re.Match[str]) -> str:
            word = match[0]
            long = len(word) > _SHOWN_KEY_LENGTH  # the server may have cut it
            return "..." if long or word.lower() in hidden else word

        return _WORD.sub(masked, text)

    def origin(self) -> Origin:
        return Origin(self.describe(), self.number, self.code, self.instruction)


def _shown(arg: Any) -> str:
    """Return an argument as text, without asking a class of the user's."""
    if isinstance(arg, bytes):
        return bytes.decode(arg, "utf-8", "backslashreplace")
    return str.__str__(arg) if isinstance(arg, str) else repr(arg)


class ScriptCall(Command):
    """A call of a script whose source is known.

    Attributes:
        script: what it calls.
        brings_source: it was packed with the source, instead of the digest.
    """

    __slots__ = ("brings_source", "script")

    script: Script
    brings_source: bool

    @property
    def well_formed(self) -> bool:
        """Whether the server will look at the script: it counts the keys first."""
        try:
            return 0 <= int(self.args[2]) <= len(self.args) - 3
        except (IndexError, ValueError):
            return False

    def with_source(self) -> tuple[Any, ...]:
        """Return the arguments that bring the source along, instead of the digest."""
        return (self.traits.script, self.script.source, *self.args[2:])


class PinnedCommand(Command):
    """A command of a cluster's client whose place is known when it is called.

    Attributes:
        node: redis-py's node that has to run it, if it is for a certain one.
        slot: the slot that it belongs to, if it is not.
    """

    __slots__ = ("node", "slot")

    node: Any
    slot: int | None


NEVER_DECODE = "NEVER_DECODE"  # redis-py's option of that name
_EMPTY_RESPONSE = "EMPTY_RESPONSE"
# For parse_response itself, not for the callback.
_REPLY_OPTIONS = frozenset({NEVER_DECODE, _EMPTY_RESPONSE, "keys"})
_SHOWN_KEY_LENGTH = 60
# What the server's texts are looked through for.
_MASKED_ARGUMENTS = 1000
_MASKED_LENGTH = 4096
_WORD = re.compile(r"\w+")
# The usual errors repeat nothing. Where redis-py knows the code in front of it, it leaves that out.
_SAYS_NOTHING = (
    "WRONGTYPE ",
    "Command # ",
    "value is not",
    "hash value is not",
    "index out of range",
    "no such key",
    "syntax error",
    "wrong number of arguments",
)

# They stand between a program and redis-py, whose methods they replace.
_WATCHERS = re.compile(
    r"(site|dist)-packages[/\\]"
    r"(ddtrace|elasticapm|newrelic|opentelemetry|sentry_sdk|wrapt)[/\\]"
)


class _InLibrary(dict[str, bool]):
    # Frames of these stand between a command and the line of the program that called it.
    packages: tuple[str, ...] = ()

    def __missing__(self, filename: str) -> bool:
        ours = filename.startswith(self.packages) or _WATCHERS.search(filename) is not None
        answer = self[filename] = ours
        return answer


# Whether a file is of redis-py or autobatch, or of what watches redis-py.
IN_LIBRARY = _InLibrary()


def add_library(path: str) -> None:
    """Take the package whose file `path` is for a library that calls come through."""
    IN_LIBRARY.packages += (f"{pathlib.Path(path).parent}{os.sep}",)
    IN_LIBRARY.clear()


add_library(redis.__file__)
add_library(__file__)


def calling_frame(frame: FrameType | None = None) -> FrameType:
    """Return the frame of the program that called into redis-py or autobatch.

    Args:
        frame: where to start; by default the caller's.
    """
    if frame is None:
        frame = sys._getframe(1)  # noqa: SLF001  # public in all but name
    while IN_LIBRARY[frame.f_code.co_filename] and frame.f_back is not None:
        frame = frame.f_back
    return frame
