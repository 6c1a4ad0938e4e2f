"""Which arguments of a command are keys: what a cluster routes it by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Args = tuple[Any, ...]
Where = slice | Callable[[Args], Args]


def keys_of(name: str, args: Args) -> Sequence[Any] | None:
    """Return the keys among the arguments of a call, in their order; it never raises.

    Args:
        name: as the table of commands has it: upper case, a subcommand after one space.
        args: the whole call, one word each, the name's words first.

    Returns:
        None if the command is not known: the server has to be asked. A malformed call has the keys
        that are there, or none.
    """
    if name in ONE_KEY:
        return args[1:2]
    where = _TABLE.get(name) or _of_subcommand(name, args)
    if where is None:
        return None
    return args[where] if isinstance(where, slice) else where(args)


def _of_subcommand(name: str, args: Args) -> Where | None:
    """Return what holds for a subcommand that the table of commands does not tell apart."""
    container, _, subcommand = name.partition(" ")
    if not subcommand and len(args) > 1:
        where = _TABLE.get(f"{name} {_word(args[1]).decode('latin-1')}")
        if where is not None:
            return where
    return _NOWHERE if container in _KEYLESS_CONTAINERS else None


def _word(arg: object) -> bytes:
    """Return an option's word in upper case: ASCII's, as servers compare."""
    if isinstance(arg, str):
        arg = arg.encode(errors="replace")
    return bytes(arg).upper() if isinstance(arg, (bytes, bytearray, memoryview)) else b""


# ---- where the arguments decide --------------------------------------------------------------


def _options(args: Args, first: int, values: Mapping[bytes, int]) -> Iterator[tuple[int, bytes]]:
    """Yield the place and the word of each option, without the values that some of them take."""
    at = first
    while at < len(args):
        word = _word(args[at])
        yield at, word
        at += 1 + values.get(word, 0)


def _counted(at: int, *, step: int = 1, destination: bool = False) -> Where:
    """How many keys there are stands at one place, and they follow it."""

    def find(args: Args) -> Args:
        stored = args[1:2] if destination else ()
        try:
            last = at + 1 + (int(args[at]) - 1) * step
        except (IndexError, OverflowError, TypeError, ValueError):
            return stored
        return stored + args[at + 1 : last + 1 : step] if at < last < len(args) else stored

    return find


def _streams(first: int) -> Where:
    """The first half of what follows STREAMS; the ids are the other half."""

    def find(args: Args) -> Args:
        for at, word in _options(args, first, {}):
            if word == b"STREAMS":
                start = at + 1
                return args[start : start + (len(args) - start) // 2]
        return ()

    return find


def _stored(first: int, words: set[bytes], values: Mapping[bytes, int]) -> Where:
    """The first argument, and what follows the last of the words that tell where to store."""

    def find(args: Args) -> Args:
        destination: Args = ()
        for at, word in _options(args, first, values):
            if word in words:
                destination = args[at + 1 : at + 2] or destination
        return args[1:2] + destination

    return find


def _migrated(args: Args) -> Args:
    """One key, or in its place an empty text and all of them after KEYS."""
    for at, word in _options(args, 6, {b"AUTH": 1, b"AUTH2": 2}):
        if word == b"KEYS" and at + 1 < len(args):
            return () if args[3] else args[at + 1 :]
    return args[3:4]


# ---- the table -------------------------------------------------------------------------------
# Names and places are what COMMAND and COMMAND GETKEYS of Valkey 9.1.2 answer, and what the
# documentation says of Redis 8 and its modules; tests/test_keys.py holds them against the servers
# that run the tests. Channels of a shard, and CLUSTERSCAN's cursor, are no keys, but routed alike.
# FT.* is not here: an index is on all nodes, and redis-py decides.

_ONE_KEY = """
APPEND BITCOUNT BITFIELD BITFIELD_RO BITPOS CLUSTERSCAN DECR DECRBY DELIFEQ DUMP EXPIRE EXPIREAT
EXPIRETIME GEOADD GEODIST GEOHASH GEOPOS GEORADIUSBYMEMBER_RO GEORADIUS_RO GEOSEARCH GET GETBIT
GETDEL GETEX GETRANGE GETSET HDEL HEXISTS HEXPIRE HEXPIREAT HEXPIRETIME HGET HGETALL HGETDEL HGETEX
HINCRBY HINCRBYFLOAT HKEYS HLEN HMGET HMSET HPERSIST HPEXPIRE HPEXPIREAT HPEXPIRETIME HPTTL
HRANDFIELD HSCAN HSET HSETEX HSETNX HSTRLEN HTTL HVALS INCR INCRBY INCRBYFLOAT LINDEX LINSERT LLEN
LPOP LPOS LPUSH LPUSHX LRANGE LREM LSET LTRIM MOVE PERSIST PEXPIRE PEXPIREAT PEXPIRETIME PFADD
PSETEX PTTL RESTORE RESTORE-ASKING RPOP RPUSH RPUSHX SADD SCARD SET SETBIT SETEX SETNX SETRANGE
SISMEMBER SMEMBERS SMISMEMBER SORT_RO SPOP SPUBLISH SRANDMEMBER SREM SSCAN STRLEN SUBSTR TTL TYPE
XACK XADD XAUTOCLAIM XCLAIM XDEL XLEN XPENDING XRANGE XREVRANGE XSETID XTRIM ZADD ZCARD ZCOUNT
ZINCRBY ZLEXCOUNT ZMSCORE ZPOPMAX ZPOPMIN ZRANDMEMBER ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANK ZREM
ZREMRANGEBYLEX ZREMRANGEBYRANK ZREMRANGEBYSCORE ZREVRANGE ZREVRANGEBYLEX ZREVRANGEBYSCORE ZREVRANK
ZSCAN ZSCORE
"""
_ONE_KEY_OF_REDIS_8 = """
ARCOUNT ARDEL ARDELRANGE ARGET ARGETRANGE ARGREP ARINFO ARINSERT ARLASTITEMS ARLEN ARMGET ARMSET
ARNEXT AROP ARRING ARSCAN ARSEEK ARSET DELEX DIGEST INCREX VADD VCARD VDIM VEMB VGETATTR VINFO
VISMEMBER VLINKS VRANDMEMBER VRANGE VREM VSETATTR VSIM XACKDEL XCFGSET XDELEX XNACK
"""
_ONE_KEY_OF_MODULES = """
BF.ADD BF.CARD BF.EXISTS BF.INFO BF.INSERT BF.LOAD BF.LOADCHUNK BF.MADD BF.MEXISTS BF.RESERVE
BF.SCANDUMP CF.ADD CF.ADDNX CF.COMPACT CF.COUNT CF.DEL CF.EXISTS CF.INFO CF.INSERT CF.INSERTNX
CF.LOADCHUNK CF.MEXISTS CF.RESERVE CF.SCANDUMP CMS.INCRBY CMS.INFO CMS.INITBYDIM CMS.INITBYPROB
CMS.QUERY JSON.ARRAPPEND JSON.ARRINDEX JSON.ARRINSERT JSON.ARRLEN JSON.ARRPOP JSON.ARRTRIM
JSON.CLEAR JSON.DEL JSON.FORGET JSON.GET JSON.MERGE JSON.NUMINCRBY JSON.NUMMULTBY JSON.OBJKEYS
JSON.OBJLEN JSON.RESP JSON.SET JSON.STRAPPEND JSON.STRLEN JSON.TOGGLE JSON.TYPE TDIGEST.ADD
TDIGEST.BYRANK TDIGEST.BYREVRANK TDIGEST.CDF TDIGEST.CREATE TDIGEST.INFO TDIGEST.MAX TDIGEST.MIN
TDIGEST.QUANTILE TDIGEST.RANK TDIGEST.RESET TDIGEST.REVRANK TDIGEST.TRIMMED_MEAN TOPK.ADD TOPK.COUNT
TOPK.INCRBY TOPK.INFO TOPK.LIST TOPK.QUERY TOPK.RESERVE TS.ADD TS.ALTER TS.CREATE TS.DECRBY TS.DEL
TS.GET TS.INCRBY TS.INFO TS.RANGE TS.READ TS.REVRANGE
"""
ONE_KEY = frozenset(f"{_ONE_KEY} {_ONE_KEY_OF_REDIS_8} {_ONE_KEY_OF_MODULES}".split())
"""The commands whose only key is what follows their name: most calls."""

_NOWHERE = slice(0)
_NO_KEYS = """
ASKING AUTH BGREWRITEAOF BGSAVE DBSIZE DISCARD ECHO EXEC FAILOVER FLUSHALL FLUSHDB HELLO INFO KEYS
LASTSAVE LOLWUT MONITOR MULTI PFSELFTEST PING PSUBSCRIBE PSYNC PUBLISH PUNSUBSCRIBE QUIT RANDOMKEY
READONLY READWRITE REPLCONF REPLICAOF RESET ROLE SAVE SCAN SELECT SHUTDOWN SLAVEOF SUBSCRIBE SWAPDB
SYNC TIME UNSUBSCRIBE UNWATCH WAIT WAITAOF
HIMPORT|DISCARD HIMPORT|DISCARDALL HIMPORT|PREPARE JSON.DEBUG|HELP MEMORY|DOCTOR MEMORY|HELP
MEMORY|MALLOC-STATS MEMORY|PURGE MEMORY|STATS OBJECT|HELP XGROUP|HELP XINFO|HELP
TS.MGET TS.MRANGE TS.MREVRANGE TS.QUERYINDEX TS.QUERYLABELS
"""
# But for what the table has, no subcommand of these has keys.
_CONTAINERS_WITHOUT_KEYS = """
ACL CLIENT CLUSTER COMMAND COMMANDLOG CONFIG DEBUG FUNCTION HOTKEYS LATENCY MODULE PUBSUB SCRIPT
SENTINEL SLOWLOG
"""

_PLACES: list[tuple[Where, str]] = [
    (_NOWHERE, _NO_KEYS),
    (
        slice(2, 3),
        """
        DEBUG|OBJECT HIMPORT|SET JSON.DEBUG|MEMORY MEMORY|USAGE OBJECT|ENCODING OBJECT|FREQ
        OBJECT|IDLETIME OBJECT|REFCOUNT PFDEBUG XGROUP|CREATE XGROUP|CREATECONSUMER
        XGROUP|DELCONSUMER XGROUP|DESTROY XGROUP|SETID XINFO|CONSUMERS XINFO|GROUPS XINFO|STREAM
        """,
    ),
    (
        slice(1, 3),
        """
        BLMOVE BLMOVEM BRPOPLPUSH COPY GEOSEARCHSTORE LCS LMOVE LMOVEM RENAME RENAMENX RPOPLPUSH
        SMOVE TS.CREATERULE TS.DELETERULE ZRANGESTORE
        """,
    ),
    (
        slice(1, None),
        """
        DEL EXISTS MGET PFCOUNT PFMERGE SDIFF SDIFFSTORE SINTER SINTERSTORE SSUBSCRIBE SUNION
        SUNIONSTORE SUNSUBSCRIBE TOUCH UNLINK WATCH
        """,
    ),
    (slice(1, -1), "BLPOP BRPOP BZPOPMAX BZPOPMIN JSON.MGET"),
    (slice(1, None, 2), "MSET MSETNX"),
    (slice(1, None, 3), "JSON.MSET TS.MADD"),
    (slice(2, None), "BITOP"),
    (
        _counted(1),
        """
        LMPOP SDIFFCARD SINTERCARD SUNIONCARD TS.NRANGE TS.NREVRANGE ZDIFF ZINTER ZINTERCARD ZMPOP
        ZUNION
        """,
    ),
    (_counted(1, step=2), "MSETEX"),
    (_counted(2), "BLMPOP BZMPOP EVAL EVALSHA EVALSHA_RO EVAL_RO FCALL FCALL_RO"),
    (
        _counted(2, destination=True),
        "CMS.MERGE TDIGEST.MERGE ZDIFFSTORE ZINTERSTORE ZUNIONSTORE",
    ),
    (_streams(1), "XREAD"),
    (_streams(4), "XREADGROUP"),  # after GROUP, a group, a consumer
    (_stored(2, {b"STORE"}, {b"BY": 1, b"GET": 1, b"LIMIT": 2}), "SORT"),
    (
        _stored(5, {b"STORE", b"STOREDIST"}, {b"STORE": 1, b"STOREDIST": 1}),
        "GEORADIUS GEORADIUSBYMEMBER",
    ),
    (_migrated, "MIGRATE"),
]
_TABLE = {word.replace("|", " "): where for where, names in _PLACES for word in names.split()}
_KEYLESS_CONTAINERS = frozenset(_CONTAINERS_WITHOUT_KEYS.split())
