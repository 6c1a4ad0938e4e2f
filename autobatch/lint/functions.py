"""Functions that look at the real type of an argument: what a Future cannot be for them.

tests/test_lint.py calls each of them with a Future.
"""

from __future__ import annotations

# By full name, which of the positional arguments. Those named by keyword count by KEYWORDS.
_TEXT = """
datetime.datetime.fromisoformat datetime.date.fromisoformat datetime.time.fromisoformat
datetime.datetime.strptime time.strptime decimal.Decimal fractions.Fraction json.dump json.dumps
json.loads orjson.dumps orjson.loads msgpack.packb open os.path.exists os.path.isdir
os.path.isfile re.compile shlex.split sys.intern textwrap.dedent io.StringIO compile eval exec
"""
_BUFFERS = """
pickle.loads marshal.loads zlib.decompress gzip.decompress bz2.decompress lzma.decompress
zlib.crc32 hashlib.md5 hashlib.sha1 hashlib.sha256 hashlib.sha512 io.BytesIO base64.b64decode
base64.b64encode binascii.hexlify binascii.unhexlify memoryview codecs.decode msgpack.unpackb
"""
ALL = tuple(range(8))

REAL_TYPE: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_TEXT.split(), (0,)),
    **dict.fromkeys(["getattr", "setattr", "hasattr", "delattr", "unicodedata.normalize"], (1,)),
    **dict.fromkeys(["re.match", "re.search", "re.fullmatch", "re.findall"], (0, 1)),
    **dict.fromkeys(["re.finditer", "re.split", "hmac.compare_digest"], (0, 1)),
    **dict.fromkeys(["re.sub", "re.subn"], (0, 2)),  # a replacement may be anything
    **dict.fromkeys(["os.path.join", "pathlib.Path", "datetime.timedelta"], ALL),
}
BUFFERS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_BUFFERS.split(), (0,)),
    **dict.fromkeys(["struct.unpack", "struct.unpack_from"], (1,)),
}
# What an argument that counts is called, where it is given by name.
NAMED: dict[str, str] = {
    **dict.fromkeys(["json.dump", "json.dumps"], "obj"),
    "json.loads": "s",
    **dict.fromkeys([name for name in REAL_TYPE if name.startswith("re.")], "string"),
}
del NAMED["re.compile"]
# With a base, or an encoding, as second argument.
WITH_SECOND: dict[str, str] = {"int": "AB103", "bytes": "AB103", "str": "AB104"}
# All of their keywords count.
KEYWORDS = {"datetime.timedelta"}
# They look into lists and dicts, too.
DEEP = {"json.dump", "json.dumps", "orjson.dumps", "msgpack.packb"}
# A hook of theirs may know what a Future is.
HOOKS = {"cls", "default"}
# They take bytes of a Future, not texts.
TEXT_ONLY = {"json.loads"}

# Methods of texts, all of whose arguments have to be texts.
_METHODS = """
endswith find lstrip partition removeprefix removesuffix replace rfind rpartition rsplit rstrip
split startswith strip
"""
TEXT_METHODS = frozenset(_METHODS.split())
# Methods of a compiled pattern.
PATTERN_METHODS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(["findall", "finditer", "fullmatch", "match", "search", "split"], (0,)),
    **dict.fromkeys(["sub", "subn"], (1,)),
}
