"""`python -m autobatch lint`: what it finds, what it mends, and what it leaves alone."""

from __future__ import annotations

import ast
import importlib
import json
import os
import pathlib
import pickle
import re
import subprocess
import sys
import sysconfig
import zlib

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import autobatch
from autobatch.__main__ import main
from autobatch.lint import functions
from autobatch.lint.clients import COMMANDS
from autobatch.lint.finder import find
from autobatch.lint.findings import CODES
from autobatch.lint.flake8 import Plugin

PREAMBLE = """\
import contextlib, json, re
from decimal import Decimal
from datetime import timedelta
import redis
import redis.asyncio
import autobatch
from redis.exceptions import ConnectionError, ResponseError
client = redis.Redis()
texts = redis.Redis(decode_responses=True)
"""

# A comment at the end of a line names what is to be found there; everything else is fine.
MISREAD = """
client.get("a") is None  # AB101
None is not client.get("a")  # AB101
(value := client.get("a")) is None  # AB101
client.set("a", 1) is True  # AB101
client.execute_command("GET", "a") is None  # AB101
client.json().get("a") is None  # AB101
client["a"] is None
client.get("a") == None
client.get("a") in (None, b"")
client.get("a") is MISSING
client.get("a").value is None
client.eager.get("a") is None
client.pipeline().get("a") is None
client.blpop("a") is None
client.xread({"a": 0}, block=5) is None
client.xread({"a": 0}) is None  # AB101
client.lock("a").acquire() is None
client.client_list() is None
autobatch.unwrap(client.get("a")) is None
int(client.get("a")) is None
client.get("a").map(str) is None  # AB101
client.hgetall("a")["b"] is None
---
value = client.get("a")
other = value
if value is None or other is None:  # AB101
    pass
value = autobatch.unwrap(value)
value is None
---
first, second = client.get("a"), client.get("b")
first is second  # AB101
third, fourth = client.mget("a", "b")
third is None
number, text = 1, client.get("a")
number is None
text is None  # AB101
thing.value = client.get("a")
thing.value is None  # AB101
thing = something()
thing.value is None
---
class Store:
    def __init__(self):
        self.store = redis.Redis()
    def load(self):
        self.value = self.store.get("a")
        return self.value is None  # AB101
    def type(self, value):
        return type(self.store.get("a"))  # AB102
---
class Client(redis.Redis):
    def load(self):
        return self.get("a") is None or super().get("a") is None  # AB101
---
def load(key):
    value = None
    if key:
        value = client.get(key)
    return value is None  # AB101
def load_or_not(key):
    if key:
        value = client.get(key)
        return value
    else:
        value = None
    return value is None
def load_or_default(key):
    value = client.get(key) or b""
    return value is None or type(value) is bytes  # AB102
def load_true():
    value, other = client.get("a"), client.get("b")
    if value:
        return value is None or other is None  # AB101
    if other and value:
        return value is not None and other is not None
    return value and value is not None or value is None  # AB101
def load_later():
    value = None
    for _ in range(3):
        if value is not None:  # AB101
            return value
        value = client.get("a")
---
values = [client.get(key) for key in "ab"]
[value is None for value in values]  # AB101
{key: value is None for key, value in zip("ab", values)}  # AB101
for number, value in enumerate(values):
    value is None  # AB101
values[0] is None  # AB101
for member in client.smembers("a"):
    member is None
values = []
values.append(client.get("a"))
values.pop() is None  # AB101
found = {"a": 1}
found["b"] = client.get("a")
for key, value in found.items():
    value is None  # AB101
---
type(client.get("a")) == bytes  # AB102
type("Name", (), {"a": client.get("a")})
isinstance(client.get("a"), bytes)
---
json.dumps(client.hgetall("a"))  # AB103
json.dumps({"a": [client.get("a")]})  # AB103
json.dumps({"a": client.get("a")}, default=str)  # AB103
json.dumps({"a": client.get("a")}, default=autobatch.integrations.encoding.default)
json.dumps(autobatch.resolve({"a": client.get("a")}))
json.loads(client.get("a"))
json.loads(texts.get("a"))  # AB103
",".join(texts.get(key) for key in "ab")  # AB103
",".join(texts.mget("a", "b"))
",".join([f"{texts.get('a')}"])
"abc".startswith(texts.get("a"))  # AB103
texts.get("a").startswith("a")
texts.get("a") in "abc"  # AB103
texts.get("a") in ["abc"]
Decimal(client.get("a"))  # AB103
timedelta(0, seconds=client.ttl("a"))  # AB103
re.match("a", texts.get("a"))  # AB103
re.compile("a").match(texts.get("a"))  # AB103
re.compile("a").sub(texts.get("a"), "a")
int(texts.get("a"), 16)  # AB103
int(texts.get("a"))
cursor.execute("select ?", (1, client.get("a")))  # AB103
cursor.execute("select :a", {"a": client.get("a")})  # AB103
connection.cursor().execute("select %s", [f"{client.get('a')}"])
client.pipeline().execute()
csv.writer(file).writerow([1, client.get("a")])  # AB103
csv.writer(file).writerow(client.lrange("a", 0, -1))  # AB103
httpx.post("https://localhost", json={"a": client.incr("a")})  # AB103
http.request("POST", "/", json=client.hgetall("a"), params={"a": client.get("a")})  # AB103
Page(json=client.get("a"))
Row.objects.filter(name=client.get("a"))  # AB103
Row.objects.filter(id__in=[client.get("a")]).exclude(name=client.get("b"))  # AB103
Row.objects.filter(pk=int(client.get("a"))).update(**client.hgetall("b"))
import datetime, subprocess
subprocess.run(["echo", client.get("a")])  # AB103
datetime.datetime.fromtimestamp(client.zscore("a", "b"))  # AB103
datetime.datetime.fromtimestamp(float(client.zscore("a", "b")))
import pickle
pickle.loads(client.get("a"))  # AB104
def json_of_ours(json, dumps):
    json.dumps(client.get("a"))
---
match client.hgetall("a"):  # AB105
    case {"a": a}:
        pass
match client.lrange("a", 0, -1):  # AB105
    case [] | [_]:
        pass
match client.get("a"):  # AB105
    case None:
        pass
match client.get("a"):
    case bytes() | "a":
        pass
    case value if value is None:  # AB101
        pass
match client.get("a"), 1:  # AB105
    case None, 1:
        pass
---
try:
    client.xgroup_create("a", "b")  # AB106
except ResponseError:
    pass
try:
    value = client.get("a")
    print(value)
except ResponseError:
    pass
try:
    value = client.get("a")  # AB106
    client.delete("a")  # AB106
except (KeyError, redis.RedisError):
    pass
try:
    client.get("a")
except KeyError:
    pass
try:
    client.get("a")
except redis.DataError:
    pass
try:
    with autobatch.batch(join=False):
        client.delete("a")
except Exception:
    pass
try:
    client.evalsha("digest", 0)
except redis.exceptions.NoScriptError:
    pass
with contextlib.suppress(ConnectionError):
    for key in "ab":
        client.delete(key)  # AB106
NETWORK = (ConnectionError, OSError)
def save():
    try:
        return client.set("a", 1)  # AB106
    except NETWORK:
        return False
---
client.get("a") is None  # noqa
client.get("a") is None  # noqa: E711, AB101
client.get("a") is None  # noqa: E711 # AB101
---
async def plain(client: redis.asyncio.Redis):
    await client.get("a") is None
    client.get("a") is None  # AB101
    value = client.get("a")
    (await value) is None
    try:
        client.get("a")
        await client.get("a")
    except ResponseError:
        pass
---
get, set_ = client.get, client.eager.set
get("a") is None  # AB101
set_("a", 1) is None
value = get("a")
type(value)  # AB102
for value in map(client.get, "ab"):
    value is None  # AB101
for value in map(str, map(get, "ab")):
    value is None
values = list(map(get, "ab"))
values[0] is None  # AB101
from typing import cast
value = cast(str, client.get("a"))
value is None  # AB101
cast("bytes", client.eager.get("a")) is None
cast("str")
---
json.dumps(obj=client.get("a"))  # AB103
json.dumps(dict(a=client.get("a")))  # AB103
json.dumps(dict(a=1))
json.loads(s=texts.get("a"))  # AB103
re.match(pattern="a", string=texts.get("a"))  # AB103
---
try:
    value: bytes = client.get("a")  # AB106
except ResponseError:
    pass
def pair():
    try:
        return client.get("a"), 1  # AB106
    except ResponseError:
        pass
def both():
    try:
        return {"a": client.get("a"), "b": [client.get("b")]}  # AB106
    except ResponseError:
        pass
def gives():
    try:
        yield client.get("a")  # AB106
    except ResponseError:
        pass
class Keeps:
    def keep(self):
        try:
            self.value = client.get("a")  # AB106
            self.seen = client.get("a")
            print(self.seen)
        except ResponseError:
            pass
try:
    first, second = client.get("a"), client.get("b")  # AB106
    third, fourth = client.get("a"), client.get("b")  # AB106
    print(third)
except ResponseError:
    pass
def chosen(key):
    try:
        return client.get(key) if key else None  # AB106
    except ResponseError:
        pass
---
script = client.register_script("return 1")
script() is None  # AB101
pattern = re.compile("a")
def uses(x: int, pattern=pattern):
    return script(keys=["a"]) is None  # AB101
"""


def programs(text):
    """Return the parts of a table."""
    return [part.strip("\n") + "\n" for part in text.split("\n---\n")]


def marked(source):
    """Return which lines say what is to be found in them."""
    return {
        (number, match[1])
        for number, line in enumerate(source.splitlines(), 1)
        if (match := re.search(r"# (AB1\d\d)$", line))
    }


def found(source, **options):
    """Return lines and codes of what the linter finds."""
    return {(finding.line, finding.code) for finding in find(source, **options)}


@pytest.mark.parametrize("program", programs(MISREAD))
def test_it_finds_what_would_be_misread_and_nothing_else(program):
    source = PREAMBLE + program
    assert found(source) == marked(source)


CLIENTS = """
import redis
client = redis.Redis.from_url("redis://localhost")
client.get("a") is None  # AB101
---
from redis import RedisCluster as Cluster
with Cluster() as nodes:
    nodes.get("a") is None  # AB101
---
import autobatch
import elsewhere
kept = autobatch.wrap(elsewhere.thing)
kept.get("a") is None  # AB101
---
import autobatch
(lambda: autobatch.asyncio.Redis())().get("a") is None  # AB101
---
from redis.sentinel import Sentinel
Sentinel([]).master_for("name").get("a") is None  # AB101
---
from redis import Redis
def annotated(kept: "Redis | None", other: int):
    kept.get("a") is None  # AB101
    other.get("a") is None
def returned() -> Redis: ...
returned().get("a") is None  # AB101
---
from typing import Optional
import redis.asyncio as aioredis
def annotated(kept: Optional[aioredis.Redis]):
    kept.get("a") is None  # AB101
---
def by_name(redis, redis_client, self, cache_redis, redis_url):
    redis.get("a") is None  # AB101
    redis_client.get("a") is None  # AB101
    self.redis.get("a") is None  # AB101
    cache_redis.get("a") is None  # AB101
    redis_url.get("a") is None
---
from app.extensions import redis_client
redis_client.get("a") is None  # AB101
---
def get_redis(): ...
def redis_connection(): ...
found = get_redis()
found.get("a") is None  # AB101
redis_connection().get("a") is None  # AB101
get_redis.get("a") is None
---
from app import MyRedis, redis_client_factory
MyRedis().get("a") is None  # AB101
MyRedis.get("a") is None
redis_client_factory.get("a") is None
---
from django_redis import get_redis_connection
get_redis_connection("default").get("a") is None  # AB101
---
def vague(client, r, conn, self):
    client.get("a") is None
    r.get("a") is None
    conn.get("a") is None
    self.client.get("a") is None
---
import redis
def vague(client, r, conn, self):
    client.get("a") is None  # AB101
    r.get("a") is None  # AB101
    conn.get("a") is None  # AB101
    self.client.get("a") is None  # AB101
for r in [{}]:
    r.get("a") is None
import requests
client = requests.Session()
client.get("a") is None
---
import redis
from redis.client import Pipeline
def not_clients(client: Pipeline, redis: dict, pipe):
    client.get("a") is None
    redis.get("a") is None
    pipe.get("a") is None
    with redis.Redis().pipeline() as redis_client:
        redis_client.get("a") is None
---
import redis
redis.get("a") is None
redis.exceptions.get("a") is None
---
import redis
class Given:
    def __init__(self, kept: redis.Redis, other, *, last: redis.Redis | None = None):
        self._thing = kept
        self.other = other
        self.last = last
    def load(self):
        self.other.get("a") is None
        self.last.get("a") is None  # AB101
        return self._thing.get("a") is None  # AB101
---
import redis
shared = redis_client = None
other = None
def connect():
    global shared, redis_client
    shared = redis.Redis()
    redis_client = redis.Redis()
    other = redis.Redis()
def load():
    other.get("a") is None
    redis_client.get("a") is None  # AB101
    return shared.get("a") is None  # AB101
---
from django.core.cache import caches
from cachelib.redis import RedisCache
from litestar.stores.redis import RedisStore
import redis
RedisCache().get("a") is None
cache, redis_store = RedisCache(), RedisStore()
cache.get("a") is None
redis_cache = RedisCache()
redis_cache.get("a") is None
redis_cache = caches["redis"]
redis_cache.get("a") is None
redis_store.get("a") is None
def given(kept: RedisCache, redis_cache: RedisCache):
    kept.get("a") is None
    redis_cache.get("a") is None
---
import httpx
import redis
class Given:
    def __init__(self, conn: httpx.Client):
        self.client = httpx.Client()
        self.conn = conn
    def load(self):
        return self.client.get("a") is None or self.conn.get("a") is None
def test_page(client, kept: redis.Redis):
    client.get("/page") is None
    client.get("https://example.org") is None
    client.get("page") is None  # AB101
    kept.get("/page") is None  # AB101
sorted([], key=lambda r: r.get("a") is None)
sorted([], key=lambda redis: redis.get("a") is None)  # AB101
"""


@pytest.mark.parametrize("program", programs(CLIENTS))
def test_it_knows_a_client_by_where_it_comes_from_or_else_by_its_name(program):
    assert found(program) == marked(program)


def test_names_can_be_told_to_it():
    source = "storage.get(1) is None\ncache.client.get(1) is None\ncache.other.get(1) is None\n"
    assert found(source) == set()
    assert found(source, names=["storage", "cache.client"]) == {(1, "AB101"), (2, "AB101")}


@pytest.mark.parametrize(
    ("code", "instead"),
    [
        ("found = client.get('a') is None", "await client.get('a') is None"),
        ("x = json.dumps(client.get('a'))", "await client.get('a')"),
        (
            "x = json.dumps({'a': client.get('a')})",
            "await autobatch.asyncio.resolve({'a': client.get('a')})",
        ),
        (
            "','.join(client.get(k) for k in ks)",
            "await autobatch.asyncio.resolve([client.get(k) for k in ks])",
        ),
    ],
)
def test_it_says_what_to_await(code, instead):
    """A dict or a list of Futures cannot be awaited itself."""
    head = "import json\nimport redis.asyncio\nclient = redis.asyncio.Redis()\n"
    (finding,) = find(f"{head}async def function(ks):\n    {code}\n")
    assert finding.message.endswith(f"write `{instead}`")


def test_columns_count_characters_from_one():
    [finding] = find("if redis and 'é€😀' and redis.get('a') is None: pass")
    assert finding.column == 24


# ---- that Python really does misread these ---------------------------------------------

# By the full name of what is called: a call, and an x with which it works.
CALLS = {
    "ast.parse": ("ast.unparse(ast.parse(x))", "abc"),
    "base64.b16encode": ("base64.b16encode(x)", b"abc"),
    "base64.b64decode": ("base64.b64decode(x)", b"YWJj"),
    "base64.b64encode": ("base64.b64encode(x)", b"abc"),
    "base64.standard_b64decode": ("base64.standard_b64decode(x)", b"YWJj"),
    "base64.standard_b64encode": ("base64.standard_b64encode(x)", b"abc"),
    "base64.urlsafe_b64encode": ("base64.urlsafe_b64encode(x)", b"abc"),
    "binascii.a2b_base64": ("binascii.a2b_base64(x)", b"YWJj"),
    "binascii.a2b_hex": ("binascii.a2b_hex(x)", b"abcd"),
    "binascii.b2a_base64": ("binascii.b2a_base64(x)", b"abc"),
    "binascii.b2a_hex": ("binascii.b2a_hex(x)", b"abc"),
    "binascii.crc32": ("binascii.crc32(x)", b"abc"),
    "binascii.hexlify": ("binascii.hexlify(x)", b"abc"),
    "binascii.unhexlify": ("binascii.unhexlify(x)", b"abcd"),
    "bytes": ("bytes(x, 'utf-8')", "abc"),
    "bytes.fromhex": ("bytes.fromhex(x)", "00ff"),
    "bz2.compress": ("bz2.compress(x)", b"abc"),
    "bz2.decompress": ("bz2.decompress(x)", importlib.import_module("bz2").compress(b"a")),
    "codecs.decode": ("codecs.decode(x, 'utf-8')", b"abc"),
    "compile": ("compile(x, 'name', 'eval').co_code", "12"),
    "datetime.date.fromisoformat": ("datetime.date.fromisoformat(x)", "2020-01-01"),
    "datetime.date.fromtimestamp": ("datetime.date.fromtimestamp(x)", 1.5),
    "datetime.datetime.fromisoformat": ("datetime.datetime.fromisoformat(x)", "2020-01-01"),
    "datetime.datetime.fromtimestamp": ("datetime.datetime.fromtimestamp(x)", 1.5),
    "datetime.datetime.strptime": ("datetime.datetime.strptime(x, '%Y')", "2020"),
    "datetime.time.fromisoformat": ("datetime.time.fromisoformat(x)", "10:00"),
    "datetime.timedelta": ("datetime.timedelta(seconds=x)", 5),
    "dateutil.parser.parse": ("dateutil.parser.parse(x)", "2020-01-01"),
    "decimal.Decimal": ("decimal.Decimal(x)", "1.5"),
    "delattr": ("delattr(type('C', (), {'abc': 1}), x)", "abc"),
    "eval": ("eval(x)", "12"),
    "exec": ("exec(x)", "12"),
    "fnmatch.fnmatch": ("fnmatch.fnmatch(x, 'a*')", "abc"),
    "fractions.Fraction": ("fractions.Fraction(x)", "1/2"),
    "getattr": ("getattr('text', x)()", "upper"),
    "glob.escape": ("glob.escape(x)", "abc"),
    "gzip.compress": ("gzip.decompress(gzip.compress(x))", b"abc"),
    "gzip.decompress": ("gzip.decompress(x)", importlib.import_module("gzip").compress(b"a")),
    "hasattr": ("hasattr('text', x)", "upper"),
    "hashlib.blake2b": ("hashlib.blake2b(x).digest()", b"abc"),
    "hashlib.blake2s": ("hashlib.blake2s(x).digest()", b"abc"),
    "hashlib.md5": ("hashlib.md5(x).digest()", b"abc"),
    "hashlib.new": ("hashlib.new('sha1', x).digest()", b"abc"),
    "hashlib.pbkdf2_hmac": ("hashlib.pbkdf2_hmac('sha1', b'key', x, 1)", b"abc"),
    "hashlib.scrypt": ("hashlib.scrypt(x, salt=b'salt', n=2, r=1, p=1)", b"abc"),
    "hashlib.sha1": ("hashlib.sha1(x).digest()", b"abc"),
    "hashlib.sha224": ("hashlib.sha224(x).digest()", b"abc"),
    "hashlib.sha256": ("hashlib.sha256(x).digest()", b"abc"),
    "hashlib.sha384": ("hashlib.sha384(x).digest()", b"abc"),
    "hashlib.sha3_224": ("hashlib.sha3_224(x).digest()", b"abc"),
    "hashlib.sha3_256": ("hashlib.sha3_256(x).digest()", b"abc"),
    "hashlib.sha3_384": ("hashlib.sha3_384(x).digest()", b"abc"),
    "hashlib.sha3_512": ("hashlib.sha3_512(x).digest()", b"abc"),
    "hashlib.sha512": ("hashlib.sha512(x).digest()", b"abc"),
    "hmac.compare_digest": ("hmac.compare_digest(x, 'abc')", "abc"),
    "hmac.digest": ("hmac.digest(b'key', x, 'sha1')", b"abc"),
    "hmac.new": ("hmac.new(b'key', x, 'sha1').digest()", b"abc"),
    "int": ("int(x, 16)", "ff"),
    "io.BytesIO": ("io.BytesIO(x).read()", b"abc"),
    "io.StringIO": ("io.StringIO(x).read()", "abc"),
    "json.dump": ("json.dump(x, io.StringIO())", "abc"),
    "json.dumps": ("json.dumps(x)", "abc"),
    "json.loads": ("json.loads(x)", "[1]"),
    "lzma.compress": ("lzma.compress(x)", b"abc"),
    "lzma.decompress": ("lzma.decompress(x)", importlib.import_module("lzma").compress(b"a")),
    "marshal.loads": ("marshal.loads(x)", importlib.import_module("marshal").dumps(1)),
    "memoryview": ("memoryview(x).tobytes()", b"abc"),
    "msgpack.packb": ("msgpack.packb(x)", "abc"),
    "msgpack.unpackb": ("msgpack.unpackb(x)", b"\x01"),
    "msgspec.convert": ("msgspec.convert(x, str)", "abc"),
    "msgspec.json.decode": ("msgspec.json.decode(x)", b"1"),
    "msgspec.json.encode": ("msgspec.json.encode(x)", "abc"),
    "msgspec.msgpack.decode": ("msgspec.msgpack.decode(x)", b"\x01"),
    "msgspec.msgpack.encode": ("msgspec.msgpack.encode(x)", "abc"),
    "numpy.frombuffer": ("list(numpy.frombuffer(x, 'uint8'))", b"abc"),
    "open": ("open(x).close()", __file__),
    "ord": ("ord(x)", "a"),
    "orjson.dumps": ("orjson.dumps(x)", "abc"),
    "orjson.loads": ("orjson.loads(x)", "[1]"),
    "os.fspath": ("os.fspath(x)", "/"),
    "os.listdir": ("os.listdir(x)", "/"),
    "os.makedirs": ("os.makedirs(x, exist_ok=True)", "/"),
    "os.path.abspath": ("os.path.abspath(x)", "/"),
    "os.path.basename": ("os.path.basename(x)", "/a"),
    "os.path.dirname": ("os.path.dirname(x)", "/a"),
    "os.path.exists": ("os.path.exists(x)", "/"),
    "os.path.isdir": ("os.path.isdir(x)", "/"),
    "os.path.isfile": ("os.path.isfile(x)", "/"),
    "os.path.join": ("os.path.join('a', x)", "abc"),
    "os.path.splitext": ("os.path.splitext(x)", "a.b"),
    "pathlib.Path": ("str(pathlib.Path('a', x))", "abc"),
    "pathlib.PurePath": ("str(pathlib.PurePath('a', x))", "abc"),
    "pickle.loads": ("pickle.loads(x)", pickle.dumps(1)),
    "re.compile": ("re.compile(x)", "abc"),
    "re.findall": ("re.findall('a', x)", "abc"),
    "re.finditer": ("list(re.finditer('z', x))", "abc"),
    "re.fullmatch": ("re.fullmatch('z', x)", "abc"),
    "re.match": ("re.match('z', x)", "abc"),
    "re.search": ("re.search('z', x)", "abc"),
    "re.split": ("re.split('b', x)", "abc"),
    "re.sub": ("re.sub('b', 'c', x)", "abc"),
    "re.subn": ("re.subn('b', 'c', x)", "abc"),
    "secrets.compare_digest": ("secrets.compare_digest(x, 'abc')", "abc"),
    "setattr": ("setattr(type('C', (), {}), x, 1)", "abc"),
    "shlex.quote": ("shlex.quote(x)", "a b"),
    "shlex.split": ("shlex.split(x)", "a b"),
    "shutil.which": ("shutil.which(x)", "sh"),
    "socket.inet_aton": ("socket.inet_aton(x)", "127.0.0.1"),
    "statistics.mean": ("statistics.mean([x, x])", 1),
    "str": ("str(x, 'utf-8')", b"abc"),
    "string.Template": ("string.Template(x).substitute()", "abc"),
    "struct.unpack": ("struct.unpack('<I', x)", b"abcd"),
    "struct.unpack_from": ("struct.unpack_from('<I', x)", b"abcd"),
    "subprocess.Popen": ("subprocess.Popen(['true', x]).wait()", "abc"),
    "subprocess.call": ("subprocess.call(['true', x])", "abc"),
    "subprocess.check_call": ("subprocess.check_call(['true', x])", "abc"),
    "subprocess.check_output": ("subprocess.check_output(['echo', x])", "abc"),
    "subprocess.run": ("subprocess.run(['true', x]).returncode", "abc"),
    "sys.intern": ("sys.intern(x)", "abc"),
    "textwrap.dedent": ("textwrap.dedent(x)", "abc"),
    "time.ctime": ("time.ctime(x)", 1.5),
    "time.gmtime": ("time.gmtime(x)", 1.5),
    "time.localtime": ("time.localtime(x)", 1.5),
    "time.strptime": ("time.strptime(x, '%Y')", "2020"),
    "unicodedata.normalize": ("unicodedata.normalize('NFC', x)", "abc"),
    "xml.etree.ElementTree.fromstring": ("xml.etree.ElementTree.fromstring(x).tag", "<a/>"),
    "yaml.load": ("yaml.load(x, yaml.SafeLoader)", "abc"),
    "yaml.safe_load": ("yaml.safe_load(x)", "abc"),
    "zlib.adler32": ("zlib.adler32(x)", b"abc"),
    "zlib.compress": ("zlib.compress(x)", b"abc"),
    "zlib.crc32": ("zlib.crc32(x)", b"abc"),
    "zlib.decompress": ("zlib.decompress(x)", zlib.compress(b"abc")),
}
CALLS |= {f"str.{name}": (f"'abc'.{name}(x)", "b") for name in functions.TEXT_METHODS - {"replace"}}
CALLS["str.replace"] = ("'abc'.replace('b', x)", "c")
CALLS["pydantic.validate_json"] = ("pydantic.TypeAdapter(int).validate_json(x)", "1")
CALLS["pydantic.model_validate_json"] = ("pydantic.RootModel[int].model_validate_json(x).root", "1")
PATTERN_CALLS = {name: f"list([re.compile('z').{name}(x)])" for name in functions.PATTERN_METHODS}
PATTERN_CALLS |= {name: f"re.compile('z').{name}('y', x)" for name in ("sub", "subn")}
PATTERN_CALLS["finditer"] = "list(re.compile('z').finditer(x))"
CALLS |= {f"re.Pattern.{name}": (call, "abc") for name, call in PATTERN_CALLS.items()}


def test_every_function_that_it_knows_is_tried():
    known = {*functions.REAL_TYPE, *functions.BUFFERS, *functions.WITH_SECOND}
    methods = ("str.", "re.Pattern", "pydantic.")
    assert {name for name in CALLS if not name.startswith(methods)} == known
    assert {f"pydantic.{name}" for name in functions.JSON_METHODS} <= set(CALLS)


def imports_of(expression):
    """Import the modules that an expression names, or skip; return their names."""
    names = {node.id for node in ast.walk(ast.parse(expression)) if isinstance(node, ast.Name)}
    builtin = dir(importlib.import_module("builtins"))
    modules = sorted(name for name in names if name not in {"x", *builtin})
    modules = ["xml.etree.ElementTree" if name == "xml" else name for name in modules]
    for name in modules:
        pytest.importorskip(name)
    return modules


def msgspec_error():
    """Return what msgspec raises, which became a ValueError later."""
    msgspec = sys.modules.get("msgspec")
    return ValueError if msgspec is None else msgspec.ValidationError


@pytest.mark.parametrize("name", sorted(CALLS))
def test_what_it_says_of_functions_is_true(client, name):
    """They work with the value, not with its Future, and the linter knows."""
    expression, value = CALLS[name]
    modules = imports_of(expression)
    namespace = {module.partition(".")[0]: __import__(module) for module in modules}
    works = eval(expression, namespace, {"x": value})
    buffer = name in functions.BUFFERS or functions.WITH_SECOND.get(name) == "AB104"
    with autobatch.batch():
        future = client.get("a").map(lambda _: value)
        if buffer and sys.version_info >= (3, 12):
            assert eval(expression, namespace, {"x": future}) == works
        else:
            with pytest.raises((TypeError, ValueError, msgspec_error())):
                eval(expression, namespace, {"x": future})
    imports = "".join(f"import {module}\n" for module in modules)
    source = f"import redis\n{imports}x = redis.Redis(decode_responses=True).get('a')\n"
    assert {code for _, code in found(source + expression)} == {"AB104" if buffer else "AB103"}


# ---- --fix -----------------------------------------------------------------------------

# Each gives another result, or an error, in a scope: until it is fixed.
BROKEN = '''
def program(client):
    """Says which are missing."""
    return [client.get("missing") is None, client.get("text") is not None]
---
def program(client):
    value = other = client.get("missing")
    return value is other is None
---
def program(client):
    if (value := client.get("missing")) is None:  # a comment
        return "missing"
    return value
---
def program(client):
    return type(client.get("text")) is str and type( client.get("text") ).__name__
---
import json
def program(client):
    return json.dumps({
        "text": client.get("text"),  # of any kind
        "list": [client.lrange("list", 0, -1)],
    }, indent=2)
---
def program(client):
    return ",".join([client.get(key) for key in ("text", "text")])
---
def program(client):
    return ",".join(client.get(key) for key in ("text", "text"))
---
def program(client):
    texts = reversed([client.get("text")])
    return ",".join(texts)
---
def program(client):
    texts = (client.get(key) for key in ("text", "text"))
    return ",".join(texts)
---
from datetime import timedelta
def program(client):
    number = client.incr("number")
    return timedelta(0, seconds=number)
---
def program(client):
    match client.hgetall("hash"):
        case {"field": value}:
            return value
---
def program(client):
    match (client.get("missing"), 1):
        case None, 1:
            return "missing"
---
import redis
def program(client):
    try:
        client.lpush("text", 1)
    except redis.ResponseError as error:
        return str(error)
---
import re
def program(client):
    return re.sub(client.get("text"), client.get("text"), client.get("text") + "é")
---
def program(client):
    return f"{client.get('missing') is None}"
'''


def outcome(source, client):
    """Run a program; return what comes of it."""
    namespace = {}
    exec(compile(source, "program", "exec"), namespace)
    try:
        return namespace["program"](client)
    except (TypeError, redis.RedisError) as error:
        return type(error), str(error)


@pytest.mark.parametrize("program", programs(BROKEN))
def test_what_is_fixed_does_as_it_did_without_batching(plain, client, program):
    pytest.importorskip("libcst")
    from autobatch.lint.fixing import fix

    def run(source, client):
        plain.flushall()
        plain.mset({"text": "abc", "number": 1})
        plain.rpush("list", "a", "b")
        plain.hset("hash", "field", "value")
        try:
            with autobatch.batch():
                return outcome(source, client)
        except redis.ResponseError as error:  # that came too late
            return error

    wanted = run(program, plain)
    assert run(program, client) != wanted
    mended = fix(program, ["client"])
    assert find(mended, names=["client"]) == []
    assert run(mended, client) == wanted


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            '"""Doc."""\nfrom __future__ import annotations\nredis.get(1) is None\n',
            (
                '"""Doc."""\nfrom __future__ import annotations\nimport autobatch\n\n'
                "autobatch.unwrap(redis.get(1)) is None\n"
            ),
        ),
        (
            "import autobatch as ab\nredis.get(1) is None",
            "import autobatch as ab\nab.unwrap(redis.get(1)) is None",
        ),
        (
            "from autobatch import unwrap as u\nredis.get(1) is None",
            "from autobatch import unwrap as u\nu(redis.get(1)) is None",
        ),
        (
            "import autobatch.asyncio\r\n\r\nredis.get(1)  is  None ;  a=b\r\n",
            "import autobatch.asyncio\r\n\r\nautobatch.unwrap(redis.get(1))  is  None ;  a=b\r\n",
        ),
        (
            "import autobatch\nx = (  # a\n  redis.get(  # b\n    1,\n  )  # c\n  is None)\n",
            (
                "import autobatch\nx = (  # a\n  autobatch.unwrap(redis.get(  # b\n    1,\n"
                "  ))  # c\n  is None)\n"
            ),
        ),
        (
            "import autobatch as a\ny is redis.get(1) is None is not redis.get(2)\n",
            (
                "import autobatch as a\n"
                "y is a.unwrap(redis.get(1)) is None is not a.unwrap(redis.get(2))\n"
            ),
        ),
        (
            "import autobatch as a\n[v for k in ks if (v := redis.get(k)) is not None]\n",
            "import autobatch as a\n[v for k in ks if a.unwrap((v := redis.get(k))) is not None]\n",
        ),
        (
            (
                "import autobatch as a\n"
                "f'{0 if redis.get(1) is None else 1!r:>{5}}{redis.get(2) is None=}'"
            ),
            (
                "import autobatch as a\n"
                "f'{0 if a.unwrap(redis.get(1)) is None else 1!r:>{5}}"
                "{a.unwrap(redis.get(2)) is None=}'"
            ),
        ),
    ],
)
def test_it_changes_nothing_else(before, after):
    pytest.importorskip("libcst")
    from autobatch.lint.fixing import fix

    assert fix(before) == after


@pytest.mark.parametrize(
    "source",
    [
        "autobatch = 1\nredis.get(1) is None\n",
        "async def f(redis):\n    redis.get(1) is None\n",  # perhaps an asyncio client
        "import redis\ndef f(r: redis.asyncio.Redis):\n    r.get(1) is None\n",
        "try:\n    redis.get(1)\n    redis.get(2)\nexcept Exception:\n    pass\n",
        "redis.get(1) == None\n",
        "import autobatch as ab\ndef f(ab):\n    redis.get(1) is None\n",
        "try: pass\nexcept Exception as autobatch: pass\nredis.get(1) is None\n",
        "match x:\n    case [*autobatch] | {**autobatch} | autobatch: pass\nredis.get(1) is None\n",
        "redis.get(1) is None\nimport autobatch\n",  # it would be used before that
        "redis.get(1) is None\nfrom autobatch import unwrap\n",
        "\x0credis.get(1) is None\n",  # which libcst would lose
        "redis.get(1) is None\r",
    ],
)
def test_it_leaves_alone_what_needs_a_human(source):
    pytest.importorskip("libcst")
    from autobatch.lint.fixing import fix

    assert fix(source) == source


@pytest.mark.parametrize("program", programs(BROKEN))
def test_what_is_fixed_stays_as_it_is(program):
    pytest.importorskip("libcst")
    from autobatch.lint.fixing import fix

    mended = fix(program, ["client"])
    assert mended != program
    assert fix(mended, ["client"]) == mended


# ---- the command line ------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


BAD = "redis.get('a') is None\n"


def test_clean_code_gives_0(folder, capsys):
    (folder / "clean.py").write_text("redis.get('a') == None\n")
    assert main(["lint", "clean.py"]) == 0
    assert capsys.readouterr() == ("", "")


def test_findings_give_1_and_their_places(folder, capsys):
    (folder / "package").mkdir()
    (folder / "package" / "bad.py").write_text("x = 1; " + BAD)
    (folder / "worse.py").write_text(BAD)
    assert main(["lint", "worse.py", "package"]) == 1
    worse, bad = capsys.readouterr().out.splitlines()
    assert worse.startswith("worse.py:1:1: AB101 `redis.get('a') is None` sees the Future")
    assert worse.endswith("write `autobatch.unwrap(redis.get('a')) is None`")
    assert bad.startswith("package/bad.py:1:8: AB101 ")


def test_other_people_s_code_is_left_out_unless_it_is_named(folder, capsys):
    for name in [".hidden", "env", "code"]:
        (folder / name).mkdir()
        (folder / name / "bad.py").write_text(BAD)
        (folder / name / "bad.txt").write_text(BAD)
    (folder / "env" / "pyvenv.cfg").touch()
    assert main(["lint", "."]) == 1
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["code/bad.py"]
    assert main(["lint", "env", ".hidden/bad.py"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    "content", [b"if:\n", b"# coding: nonsense\n", b"'\xff'\n", b"a\0b\n", b"-" * 200_000 + b"1\n"]
)
def test_what_cannot_be_read_gives_2_and_the_rest_is_still_read(folder, capsys, content):
    (folder / "broken.py").write_bytes(content)
    (folder / "worse.py").write_text(BAD)
    assert main(["lint", "broken.py", "missing.py", "worse.py"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("worse.py:1:1")
    assert [line.split(":")[0] for line in err.splitlines()] == ["broken.py", "missing.py"]


def test_a_notebook_is_no_module(folder, capsys):
    """Its JSON may well be an expression of Python, with nothing to find in it."""
    (folder / "notebook.ipynb").write_text('{"cells": [{"source": ["redis.get(1) is None"]}]}')
    assert main(["lint", "notebook.ipynb"]) == 2
    assert capsys.readouterr().err.startswith("notebook.ipynb: ")
    assert main(["lint", "."]) == 0


def test_what_is_no_file_is_left_out_of_a_directory(folder, capsys):
    """A lock of Emacs, a pipe: reading that fails, or never ends."""
    (folder / "lock.py").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.py")
    (folder / "bad.py").write_text(BAD)
    assert main(["lint", ".", "bad.py", "./bad.py"]) == 1
    out, err = capsys.readouterr()
    assert (len(out.splitlines()), err) == (1, "")
    assert main(["lint", "lock.py"]) == 2


def test_a_link_stays_one(folder):
    pytest.importorskip("libcst")
    (folder / "bad.py").write_text(BAD)
    (folder / "link.py").symlink_to("bad.py")
    assert main(["lint", "--fix", "link.py"]) == 0
    assert (folder / "link.py").is_symlink()
    assert "unwrap" in (folder / "bad.py").read_text()


def test_a_terminal_that_lacks_characters_gets_others(folder):
    name = os.fsdecode(b"bad-\xff.py")
    (folder / name).write_text("redis.get('é') is None\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "autobatch", "lint", "."],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, b"")
    assert rb"`redis.get('\xe9') is None`" in done.stdout


def test_warnings_of_the_code_are_not_its_business(folder, capsys):
    pytest.importorskip("libcst")
    (folder / "old.py").write_text("redis.get('\\d') is None\n")
    assert main(["lint", "old.py"]) == 1
    assert main(["lint", "--fix", "old.py"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments", [[], ["lint"], ["nonsense"], ["lint", "--ignore", "X", "."]])
def test_wrong_arguments_give_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m autobatch" in capsys.readouterr().err


def test_names_and_codes_can_be_told_on_the_command_line(folder, capsys):
    (folder / "bad.py").write_text("storage.get('a') is None\ntype(storage.get('a'))\n")
    assert main(["lint", "bad.py"]) == 0
    assert main(["lint", "--client", "storage", "--ignore", "AB101", "bad.py"]) == 1
    assert capsys.readouterr().out.startswith("bad.py:2:1: AB102")


def test_it_says_it_as_json(folder, capsys):
    (folder / "bad.py").write_text(BAD)
    assert main(["lint", "--format", "json", "bad.py"]) == 1
    [row] = json.loads(capsys.readouterr().out)
    assert row.pop("message").startswith("`redis.get('a') is None`")
    assert row == {"path": "bad.py", "line": 1, "column": 1, "code": "AB101", "fixable": True}
    (folder / "bad.py").write_text("")
    assert main(["lint", "--format", "json", "bad.py"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_it_says_it_as_github_wants_it(folder, capsys):
    (folder / "bad.py").write_text("redis.get('100%') is None\n")
    assert main(["lint", "--format", "github", "bad.py"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("::error file=bad.py,line=1,col=1,title=AB101::`redis.get('100%25')")


def test_fix_gives_0_if_nothing_is_left(folder, capsys):
    pytest.importorskip("libcst")
    (folder / "bad.py").write_bytes(b"# coding: latin-1\r\n'\xe9'; redis.get(1) is None\r\n")
    assert main(["lint", "--fix", "bad.py"]) == 0
    assert (folder / "bad.py").read_bytes() == (
        b"# coding: latin-1\r\nimport autobatch\r\n\r\n"
        b"'\xe9'; autobatch.unwrap(redis.get(1)) is None\r\n"
    )
    (folder / "bad.py").write_text(BAD + "with redis.get(1) is None: type(redis.get(1))\n")
    assert main(["lint", "--fix", "--ignore", "AB101", "bad.py"]) == 0
    assert (folder / "bad.py").read_text().count("unwrap") == 1


def test_fix_gives_1_if_something_is_left(folder, capsys):
    pytest.importorskip("libcst")
    (folder / "bad.py").write_text(f"{BAD}async def f(r):\n    {BAD}")
    assert main(["lint", "--fix", "bad.py"]) == 1
    assert [line.split(":")[1] for line in capsys.readouterr().out.splitlines()] == ["5"]


def test_fix_says_what_it_needs(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "libcst", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "autobatch.lint.fixing", raising=False)
    (folder / "bad.py").write_text(BAD)
    assert main(["lint", "--fix", "bad.py"]) == 2
    assert 'pip install "redis-autobatch[lint]"' in capsys.readouterr().err
    assert (folder / "bad.py").read_text() == BAD


def test_python_runs_it_as_a_module(folder):
    (folder / "bad.py").write_text(BAD)
    command = [sys.executable, "-m", "autobatch", "lint", "bad.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[:15], done.stderr) == (1, "bad.py:1:1: AB1", "")


def test_a_reader_that_has_had_enough_ends_it_quietly(folder):
    (folder / "bad.py").write_text(BAD)
    command = [sys.executable, "-m", "autobatch", "lint", "bad.py"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")  # as of what SIGPIPE ends, in a shell


def test_flake8_gets_columns_from_zero():
    source = "x = 1; " + BAD
    [(line, column, text, kind)] = Plugin(ast.parse(source), source.splitlines(keepends=True)).run()
    assert (line, column, text[:6], kind) == (1, 7, "AB101 ", Plugin)


def test_flake8_itself_runs_it(folder):
    pytest.importorskip("flake8")
    (folder / "bad.py").write_text("x = 1; " + BAD + BAD.rstrip() + "  # noqa: AB101\n")
    unasked = [sys.executable, "-m", "flake8", "--isolated", "--extend-ignore", "E,W,F", "bad.py"]
    done = subprocess.run(unasked, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "",
        "",
    )  # that it is installed is no wish
    asked = [*unasked, "--enable-extensions", "AB"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[:22], done.stderr) == (1, "bad.py:1:8: AB101 `red", "")
    assert len(done.stdout.splitlines()) == 1


# ---- whatever it is given --------------------------------------------------------------

LARGE = {
    "names": lambda size: "".join(f"NAME_{number} = {number}\n" for number in range(size)),
    "elifs": lambda size: (
        "if x: pass\n" + "".join(f"elif x == {number}: y = 1\n" for number in range(size))
    ),
    "entries": lambda size: f"x = [{'1, ' * size}]\n",
    "sum": lambda size: f"x = {'1 + ' * size}1\n",
}


def steps_of(source):
    """Return how many functions are called while a module is read."""
    steps = 0

    def count(*_):
        nonlocal steps
        steps += 1

    sys.setprofile(count)
    try:
        assert len(find(source + BAD)) == 1
    finally:
        sys.setprofile(None)
    return steps


@pytest.mark.parametrize("name", LARGE)
def test_large_modules_are_read_in_one_breath(name):
    """Neither does the time grow as the square of the size, nor is the stack exhausted."""
    assert steps_of(LARGE[name](900)) < 2.5 * steps_of(LARGE[name](450))


LIBRARY = sorted(
    path
    for path in pathlib.Path(sysconfig.get_path("stdlib")).rglob("*.py")
    if "site-packages" not in path.parts
)
ANY_FILE = settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.filter_too_much]
)


@given(st.sampled_from(LIBRARY))
@ANY_FILE
def test_python_s_own_library_has_nothing_to_find(path):
    assert main(["lint", "--format", "json", str(path)]) in {0, 2}


@given(st.sampled_from(LIBRARY))
@ANY_FILE
def test_whatever_is_fixed_stays_a_program_with_nothing_more_to_fix(path):
    pytest.importorskip("libcst")
    from autobatch.lint.fixing import fix

    try:
        source = path.read_text("utf-8")
        # As if whatever has a get() and the like were a client: then there is something to fix.
        names = {
            node.func.value.id
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.attr in COMMANDS
        }
        findings = find(source, names=names)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    if any(finding.targets for finding in findings):
        left = find(fix(source, names), names=names)
        assert [finding for finding in left if finding.targets] == []
    assert {finding.code for finding in findings} <= set(CODES)
