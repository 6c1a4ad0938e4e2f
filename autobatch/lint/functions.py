"""Functions that look at the real type of an argument: what a Future cannot be for them.

tests/test_lint.py calls each of them with a Future.
"""

from __future__ import annotations

# By full name, which of the positional arguments. Those named by keyword count by KEYWORDS.
_TEXT = """
ast.parse bytes.fromhex compile datetime.date.fromisoformat datetime.date.fromtimestamp
datetime.datetime.fromisoformat datetime.datetime.fromtimestamp datetime.datetime.strptime
datetime.time.fromisoformat
dateutil.parser.parse decimal.Decimal eval exec fnmatch.fnmatch fractions.Fraction glob.escape
io.StringIO json.dump json.dumps json.loads msgpack.packb msgspec.convert msgspec.json.encode
msgspec.msgpack.encode open ord orjson.dumps orjson.loads os.fspath os.listdir os.makedirs
os.path.abspath os.path.basename os.path.dirname os.path.exists os.path.isdir os.path.isfile
os.path.splitext re.compile shlex.quote shlex.split shutil.which socket.inet_aton statistics.mean
string.Template subprocess.call subprocess.check_call subprocess.check_output
subprocess.Popen subprocess.run sys.intern textwrap.dedent time.ctime time.gmtime time.localtime
time.strptime xml.etree.ElementTree.fromstring yaml.load yaml.safe_load
"""
_BUFFERS = """
base64.b16encode base64.b64decode base64.b64encode base64.standard_b64decode
base64.standard_b64encode base64.urlsafe_b64encode binascii.a2b_base64 binascii.a2b_hex
binascii.b2a_base64 binascii.b2a_hex binascii.crc32 binascii.hexlify binascii.unhexlify bz2.compress
bz2.decompress codecs.decode gzip.compress gzip.decompress hashlib.blake2b hashlib.blake2s
hashlib.md5 hashlib.scrypt hashlib.sha1 hashlib.sha224 hashlib.sha256 hashlib.sha384
hashlib.sha3_224 hashlib.sha3_256 hashlib.sha3_384 hashlib.sha3_512 hashlib.sha512 io.BytesIO
lzma.compress lzma.decompress marshal.loads memoryview msgpack.unpackb msgspec.json.decode
msgspec.msgpack.decode numpy.frombuffer pickle.loads zlib.adler32 zlib.compress zlib.crc32
zlib.decompress
"""
ALL = tuple(range(8))

REAL_TYPE: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_TEXT.split(), (0,)),
    **dict.fromkeys(["getattr", "setattr", "hasattr", "delattr", "unicodedata.normalize"], (1,)),
    **dict.fromkeys(["re.match", "re.search", "re.fullmatch", "re.findall"], (0, 1)),
    **dict.fromkeys(
        ["re.finditer", "re.split", "hmac.compare_digest", "secrets.compare_digest"], (0, 1)
    ),
    **dict.fromkeys(["re.sub", "re.subn"], (0, 2)),  # a replacement may be anything
    **dict.fromkeys(["os.path.join", "pathlib.Path", "pathlib.PurePath"], ALL),
    "datetime.timedelta": ALL,
}
BUFFERS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_BUFFERS.split(), (0,)),
    **dict.fromkeys(["struct.unpack", "struct.unpack_from", "hashlib.new"], (1,)),
    **dict.fromkeys(["hmac.digest", "hmac.new"], (0, 1)),
    "hashlib.pbkdf2_hmac": (1, 2),
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
DEEP = {
    *["json.dump", "json.dumps", "orjson.dumps", "msgpack.packb"],
    *["msgspec.json.encode", "msgspec.msgpack.encode"],
    *[name for name in REAL_TYPE if name.startswith(("statistics.", "subprocess."))],
}
# A hook of theirs may know what a Future is; those of HOOKS_TO_TEXT make a text of all they get.
HOOKS = {"cls", "default", "enc_hook"}
HOOKS_TO_TEXT = {"str", "repr"}
# They take bytes of a Future, not texts.
TEXT_ONLY = {"json.loads"}

# Methods of texts, all of whose arguments have to be texts.
_METHODS = """
endswith find lstrip partition removeprefix removesuffix replace rfind rpartition rsplit rstrip
split startswith strip
"""
TEXT_METHODS = frozenset(_METHODS.split())
# Methods that look into what they are given, from which argument on: of cursors and connections of
# databases, and of csv's writers, which write None as nothing.
DEEP_METHODS = {"execute": 1, "executemany": 1, "writerow": 0, "writerows": 0}
# Methods of clients of web servers, whose `json=` goes to json.dumps.
WEB_METHODS = frozenset({"delete", "get", "head", "options", "patch", "post", "put", "request"})
# What leads to the queries of Django's models, which hand their arguments on to a database.
QUERIES = "objects"
# Methods of pydantic's models and adapters.
JSON_METHODS = frozenset({"model_validate_json", "validate_json"})
# Methods of a compiled pattern.
PATTERN_METHODS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(["findall", "finditer", "fullmatch", "match", "search", "split"], (0,)),
    **dict.fromkeys(["sub", "subn"], (1,)),
}
