"""What looks like a Redis client, and which of its methods give a Future."""

from __future__ import annotations

import inspect
import re

import redis
from redis.commands.bf import commands as bloom
from redis.commands.json.commands import JSONCommands
from redis.commands.timeseries.commands import TimeSeriesCommands

from autobatch.command import Travel, traits_of


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LIBRARIES = {"redis", "valkey", "autobatch", "aioredis"}
CLASSES = {"Redis", "StrictRedis", "RedisCluster", "Valkey", "StrictValkey", "ValkeyCluster"}
_MAKERS = {"from_url", "from_pool"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SERVERS = {"redis", "valkey"}
# A name that ends in one of these is a client, if it has one of _SERVERS in it.
_LAST_WORDS = _SERVERS | _words(
    "async cli client cluster conn connection db instance master replica server slave"
)
# A class, if it ends in one of these: a cache or a store has a client, and is none.
_CLASS_LAST_WORDS = _SERVERS | _words("async client cluster conn connection")
# A function whose name begins with one of these, and goes on as above, gives a client.
_VERBS = _words("build connect create get init make new open setup")
# Names that are often something else: they count in modules that import something of Redis.
_VAGUE = {"client", "conn", "connection", "r", "rc", "rdb"}
_VAGUE_ATTRIBUTES = _VAGUE - {"r"}

# What a method gives that is not the reply of a command.
_NO_REPLY = _words("""
bf bitfield cf cms command_docs command_info digest_local ft hello json latency_doctor latency_graph
latency_histogram memory_doctor memory_help register_script tdigest topk ts vset
""")
# redis-py looks at their replies, or they run at once so that a NoScriptError can be handled: an
# error is raised at the call. The reply may still be a Future.
FORCED = {"evalsha", "evalsha_ro", "xread", "xreadgroup"}
_BLOCK = "block"  # the argument that makes XREAD wait for news


def _methods_of(*kinds: type) -> frozenset[str]:
    return frozenset(
        name
        for kind in kinds
        for name, member in vars(kind).items()
        if inspect.isfunction(member)
        and not name.startswith("_")
        and not inspect.isgeneratorfunction(inspect.unwrap(member))
    )


def _waits(method: str) -> bool:
    """Return whether a command can travel in a batch, and so be a Future."""
    return traits_of(tuple(method.upper().split("_"))).travel is not Travel.ALONE


_COMMAND_CLASSES = [k for k in redis.Redis.__mro__ if k.__module__.startswith("redis.commands")]
COMMANDS = frozenset(
    name for name in _methods_of(*_COMMAND_CLASSES) - _NO_REPLY if _waits(name)
) | {"execute_command"}
MODULES = {
    "json": _methods_of(JSONCommands) - {"set_file", "set_path"},
    "ts": _methods_of(TimeSeriesCommands),
    "bf": _methods_of(bloom.BFCommands),
    "cf": _methods_of(bloom.CFCommands),
    "cms": _methods_of(bloom.CMSCommands),
    "tdigest": _methods_of(bloom.TDigestCommands),
    "topk": _methods_of(bloom.TOPKCommands),
}

# What an except clause has to name to catch the error of a reply. Those left out are raised at the
# call, or by what is no command.
_RAISED_ELSEWHERE = _words(
    "DataError InvalidPipelineStack LockError LockNotOwnedError PubSubError WatchError"
)
ERRORS = {
    name
    for name, kind in vars(redis.exceptions).items()
    if inspect.isclass(kind) and issubclass(kind, redis.RedisError)
} - _RAISED_ELSEWHERE
BROAD_ERRORS = {"BaseException", "Exception"}


def blocks(method: str, arguments: set[str]) -> bool:
    """Return whether a call steps aside because of the arguments that it names."""
    return method in FORCED and _BLOCK in arguments


def is_class(path: str) -> bool:
    """Return whether a full name is that of a class of clients."""
    return path.rpartition(".")[2] in CLASSES


def makes_client(path: str) -> bool:
    """Return whether calling what has this full name gives a client."""
    *owners, last = path.split(".")
    if last in _MAKERS and owners:
        return owners[-1] in CLASSES or (owners[0] in _LIBRARIES and owners[-1].islower())
    return is_class(path) or (not is_of_library(path) and sounds_like_maker(last))


def is_asynchronous(path: str) -> bool | None:
    """Return whether clients of this full name are asyncio's; None where that is not known."""
    parts = path.split(".")
    if parts[0] in _LIBRARIES:
        return "asyncio" in parts or parts[0] == "aioredis"
    return None


def is_of_redis(path: str) -> bool:
    """Return whether an import has to do with Redis."""
    return "autobatch" in path or not _SERVERS.isdisjoint(_parts(path))


def is_of_library(path: str) -> bool:
    """Return whether something comes from a library of clients itself."""
    return path.partition(".")[0] in _LIBRARIES


def sounds_certain(name: str) -> bool:
    """Return whether a name is a client's, whatever surrounds it."""
    words = _parts(name)
    return not is_class_s(name) and not (words and words[0] in _VERBS) and _end_well(words)


def sounds_like_maker(name: str) -> bool:
    """Return whether a function or class makes clients, by its name."""
    words = _parts(name)
    if is_class_s(name) and words[-1] not in _CLASS_LAST_WORDS:
        return False
    return _end_well(words[1:] if words and words[0] in _VERBS else words)


def is_class_s(name: str) -> bool:
    """Return whether a name is written as that of a class."""
    return name.lstrip("_")[:1].isupper() and not name.isupper()


def _end_well(words: list[str]) -> bool:
    return bool(words) and not _SERVERS.isdisjoint(words) and words[-1] in _LAST_WORDS


def sounds_vague(name: str) -> bool:
    """Return whether a variable's name is a client's where a module works with Redis."""
    return name.strip("_") in _VAGUE


def attribute_sounds_vague(name: str) -> bool:
    """Return whether an attribute's name is a client's where a module works with Redis."""
    return name.strip("_") in _VAGUE_ATTRIBUTES


def _parts(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]
