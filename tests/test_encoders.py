"""Encoders: what is a Future is encoded as its value, by each one's own hook."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
import redis

import autobatch
import autobatch.asyncio
from autobatch.errors import NotReady
from autobatch.integrations import encoding
from looping import in_loop

for needed in ("attrs", "msgspec", "orjson", "pydantic"):
    pytest.importorskip(needed)

import attrs  # noqa: E402
import msgspec  # noqa: E402
import orjson  # noqa: E402
import pydantic  # noqa: E402
from pydantic_core import PydanticSerializationError  # noqa: E402

from autobatch.integrations.pydantic import BatchModel, Lazy, Resolved  # noqa: E402

# What redis-py and autobatch are asked for alike.
CONTENTS = {
    "dict": lambda redis: {"text": redis.get("text"), "views": redis.incr("views")},
    "list": lambda redis: [redis.get("count"), redis.lrange("list", 0, -1)],
    "tuple": lambda redis: (redis.get("count"), redis.hgetall("hash")),
    "nested": lambda redis: {"a": [{"b": ({"c": redis.hgetall("hash")}, redis.get("text"))}]},
    "str": lambda redis: redis.get("text"),
    "int": lambda redis: redis.incr("views"),
    "float": lambda redis: redis.zscore("scores", "ada"),
    "bool": lambda redis: {"set": redis.set("other", 1)},
    "None": lambda redis: redis.get("missing"),
    "None inside": lambda redis: [redis.get("missing")],
    "key": lambda redis: {redis.get("text"): [redis.get("count")]},
    "no Future": lambda redis: {"é": [1, 2.5, None, True]},
}
each_content = pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)


def as_with_redis_py(client, plain, content, encode, plainly):
    """Compare what `encode` makes of Futures with what `plainly` makes of values."""
    expected = plainly(content(plain))
    plain.delete("views", "other")
    with autobatch.batch() as scope:
        encoded = encode(content(client))
        assert scope.stats.round_trips == scope.stats.flushes <= 2  # a key takes one
    assert encoded == expected


# ---- json -------------------------------------------------------------------------------


@each_content
@pytest.mark.parametrize(
    "options", [{}, {"indent": 2}, {"ensure_ascii": False}, {"sort_keys": True}]
)
def test_json_with_our_encoder(client, plain, data, content, options):
    """The encoder in C, and the one in Python that indents."""
    as_with_redis_py(
        client,
        plain,
        content,
        lambda value: json.dumps(value, cls=encoding.JSONEncoder, **options),
        lambda value: json.dumps(value, **options),
    )


@each_content
def test_json_into_a_file(client, plain, data, content):
    """`dump` writes part by part."""

    def dump(value, **options):
        file = io.StringIO()
        json.dump(value, file, **options)
        return file.getvalue()

    as_with_redis_py(
        client, plain, content, functools.partial(dump, cls=encoding.JSONEncoder), dump
    )


@pytest.mark.parametrize("name", sorted(CONTENTS.keys() - {"str", "key"}))
def test_json_with_our_default(client, plain, data, name):
    """Enough for the encoder in C, but for a text at the top and keys."""
    dumps = functools.partial(json.dumps, default=encoding.default)
    as_with_redis_py(client, plain, CONTENTS[name], dumps, json.dumps)


def test_our_encoder_goes_together_with_another_one(client, data):
    """It asks the next class what it does not know."""

    class Other(json.JSONEncoder):
        def default(self, o):
            return sorted(o) if isinstance(o, set) else super().default(o)

    class Both(encoding.JSONEncoder, Other):
        pass

    with autobatch.batch():
        assert json.dumps({"a": {2, 1}, "b": client.get("count")}, cls=Both) == (
            '{"a": [1, 2], "b": "3"}'
        )


def test_json_refuses_what_it_does_not_know():
    with pytest.raises(TypeError, match="Object of type set is not JSON serializable"):
        json.dumps({"a": {1}}, cls=encoding.JSONEncoder)


# ---- orjson, msgspec ----------------------------------------------------------------------


def encode_with_orjson(value):
    return encoding.encode(value, functools.partial(orjson.dumps, default=encoding.default))


def encode_with_msgspec(value):
    return encoding.encode(value, functools.partial(msgspec.json.encode, enc_hook=encoding.default))


def encode_with_pydantic(value):
    return pydantic.TypeAdapter(Any).dump_json(value)


def encode_with_json(value):
    return json.dumps(value, cls=encoding.JSONEncoder).encode()


ENCODERS = {
    "json": encode_with_json,
    "orjson": encode_with_orjson,
    "msgspec": encode_with_msgspec,
    "pydantic": encode_with_pydantic,
}
each_encoder = pytest.mark.parametrize("encode", ENCODERS.values(), ids=ENCODERS)


@each_encoder
@each_content
def test_each_encoder(client, plain, data, content, encode):
    """The same bytes as for plain values."""
    as_with_redis_py(client, plain, content, encode, encode)


@pytest.mark.parametrize(
    "encode",
    [
        functools.partial(orjson.dumps, default=encoding.default),
        msgspec.json.Encoder(enc_hook=encoding.default).encode,
    ],
)
def test_the_hook_alone(client, data, encode):
    """Without `encoding.encode`, which is for keys and for texts at the top."""
    with autobatch.batch() as scope:
        content = {"text": client.get("count"), "list": [client.get("missing")]}
        encoded = encode(content)
        assert scope.stats.round_trips == 1
    assert encoded == b'{"text":"3","list":[null]}'


def test_a_struct_of_msgspec(client, data):
    kind = msgspec.defstruct("Struct", ["text", "list"], frozen=True)
    with autobatch.batch():
        struct = kind(client.get("count"), [client.get("missing")])
        assert encode_with_msgspec(struct) == b'{"text":"3","list":[null]}'
        assert autobatch.resolve(struct) == kind("3", [None])


@each_encoder
@in_loop
async def test_a_pending_asyncio_future_is_refused(proxy, data, encode):
    """It has to be awaited: an encoder cannot wait, and must not block the loop."""
    async with autobatch.asyncio.Redis(port=proxy.port) as client, autobatch.batch():
        future = client.get("count")
        # pydantic makes an error of its own of whatever is raised inside it.
        kind = PydanticSerializationError if encode is encode_with_pydantic else NotReady
        with pytest.raises(kind, match="is not there yet: await it"):
            encode({"count": future})
        assert proxy.exchanges == []
        await future


@each_encoder
@in_loop
async def test_an_asyncio_future_that_was_awaited_is_encoded(proxy, data, encode):
    async with (
        autobatch.asyncio.Redis(port=proxy.port, decode_responses=True) as client,
        autobatch.batch(),
    ):
        content = {"count": client.get("count"), "missing": [client.get("missing")]}
        await autobatch.asyncio.flush()
        assert json.loads(encode(content)) == {"count": "3", "missing": [None]}


@pytest.mark.parametrize("encode", [encode_with_json, encode_with_orjson, encode_with_msgspec])
def test_the_error_of_a_command_is_raised(client, data, encode):
    with autobatch.batch(), pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        encode({"length": client.llen("text")})


# ---- asyncio.resolve ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", sorted(CONTENTS.keys() - {"key"})
)  # a key is known when a dict is made
@pytest.mark.parametrize("module", [autobatch, autobatch.asyncio])
@in_loop
async def test_resolving_in_a_loop(proxy, plain, data, name, module):
    """What an asyncio client gives, and what a synchronous one does, in a thread."""
    expected = CONTENTS[name](plain)
    plain.delete("views", "other")
    client = module.Redis(port=proxy.port, decode_responses=True)
    async with autobatch.batch() as scope:
        assert await autobatch.asyncio.resolve(CONTENTS[name](client)) == expected
        assert scope.stats.round_trips == (name != "no Future")
    if module is autobatch:
        client.close()
    else:
        await client.aclose()


@in_loop
async def test_resolving_waits_for_what_map_has_called(proxy, data, plain):
    """Wave after wave, without blocking the loop: that would warn."""
    plain.set("pointer", "text")
    async with autobatch.asyncio.Redis(port=proxy.port, decode_responses=True) as client:
        with autobatch.Redis(port=proxy.port, decode_responses=True) as sync_client:
            for one in (client, sync_client):
                async with autobatch.batch():
                    chain = one.get("pointer").map(one.get).map(str.upper)
                    assert await autobatch.asyncio.resolve([chain]) == ["HÉLLO"]
        assert await autobatch.asyncio.resolve({"text": client.get("text")}) == {"text": "héllo"}


# ---- pydantic ---------------------------------------------------------------------------------


class Loose(pydantic.BaseModel):
    """Takes anything."""

    value: Any
    extra: Any = None


class Page(pydantic.BaseModel):
    """Keeps Futures."""

    views: Lazy[int]
    title: Lazy[str | None] = None
    tags: Lazy[list[str]] = []


@dataclasses.dataclass
class Card:
    """A dataclass of the standard library."""

    value: Any


class Pair(NamedTuple):
    """A named tuple."""

    value: Any


@each_content
@pytest.mark.parametrize("mode", ["python", "json"])
def test_a_model_of_anything(client, plain, data, content, mode):
    """`model_dump` and `model_dump_json`."""
    as_with_redis_py(
        client,
        plain,
        content,
        lambda value: Loose(value=value).model_dump(mode=mode),
        lambda value: Loose(value=value).model_dump(mode=mode),
    )
    plain.delete("views", "other")
    as_with_redis_py(
        client,
        plain,
        content,
        lambda value: Loose(value=value).model_dump_json(),
        lambda value: Loose(value=value).model_dump_json(),
    )


@pytest.mark.parametrize("kind", [Card, Pair, Loose])
def test_what_a_type_adapter_takes(client, data, kind):
    with autobatch.batch() as scope:
        adapter = pydantic.TypeAdapter(list[kind])
        things = [kind(value=client.get("count")), kind(value=client.hgetall("hash"))]
        expected = [kind(value="3"), kind(value={"name": "Ada", "born": "1815"})]
        assert adapter.dump_json(things) == adapter.dump_json(expected)
        assert scope.stats.round_trips == 1


def test_a_model_that_was_not_validated(client, data):
    """`model_construct`, and assignment: the field's type does not make it warn."""
    page = Strict.model_construct(views=client.incr("views"), title=client.get("missing"))
    with autobatch.batch():
        page.views = client.incr("views")
        assert page.model_dump_json() == '{"views":2,"title":null}'


class Strict(pydantic.BaseModel):
    """Takes what its fields say."""

    views: int
    title: str | None = None


def test_lazy_fields_wait(client, data):
    """Many models take one round trip: nothing is forced where they are made."""
    with autobatch.batch() as scope:
        pages = [
            Page(
                views=client.get("count"),
                title=client.get("missing"),
                tags=client.lrange("list", 0, -1),
            )
            for _ in range(10)
        ]
        assert scope.stats.flushes == 0
        assert type(pages[0].views) is autobatch.Future
        plainly = Page(views=3, title=None, tags=["a", "b"])
        assert [page.model_dump_json() for page in pages] == [plainly.model_dump_json()] * 10
        assert [page.model_dump() for page in pages] == [plainly.model_dump()] * 10
        assert pages[0].views + 1 == 4  # validated: Redis said "3"
        assert scope.stats.round_trips == 1


def test_lazy_fields_take_plain_values():
    """Validated at once, as without Lazy."""
    assert Page(views="3").views == 3
    with pytest.raises(pydantic.ValidationError, match="int_parsing"):
        Page(views="three")


def test_a_lazy_field_is_refused_where_its_value_is_used(client, data):
    with autobatch.batch():
        page = Page(views=client.get("text"))
        with pytest.raises(pydantic.ValidationError, match="int_parsing"):
            page.views + 1
        with pytest.raises(Exception, match="int_parsing"):
            page.model_dump_json()


def test_lazy_says_the_same_in_a_schema():
    class Plainly(pydantic.BaseModel):
        """Keeps Futures."""

        views: int
        title: str | None = None
        tags: list[str] = []

    for mode in ("validation", "serialization"):
        assert Page.model_json_schema(mode=mode) == Plainly.model_json_schema(mode=mode) | {
            "title": "Page"
        }


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (int, lambda redis: redis.incr("views")),
        (int, lambda redis: redis.get("count")),
        (str, lambda redis: redis.get("text")),
        (str | None, lambda redis: redis.get("missing")),
        (float, lambda redis: redis.zscore("scores", "ada")),
        (bool, lambda redis: redis.set("other", 1)),
        (list[str], lambda redis: redis.lrange("list", 0, -1)),
        (dict[str, str], lambda redis: redis.hgetall("hash")),
        (list[int], lambda redis: [redis.get("count"), redis.strlen("count")]),
    ],
    ids=lambda value: "" if callable(value) and not isinstance(value, type) else str(value),
)
def test_resolved_fields_hold_plain_values(client, plain, data, kind, call):
    """`Resolved[...]` a field, or BatchModel for all of them."""

    class One(pydantic.BaseModel):
        value: Resolved[kind]

    class All(BatchModel):
        value: kind

    class Plainly(pydantic.BaseModel):
        value: kind

    for model in (One, All):
        plain.delete("views", "other")
        expected = Plainly(value=call(plain)).value
        plain.delete("views", "other")
        with autobatch.batch():
            value = model(value=call(client)).value
        assert (type(value), value) == (type(expected), expected)


def test_a_batch_model_is_one_flush(client, data):
    class All(BatchModel):
        views: int
        tags: list[str]

    with autobatch.batch() as scope:
        made = All(views=client.incr("views"), tags=client.lrange("list", 0, -1))
        assert scope.stats.round_trips == 1
    assert made.model_dump() == {"views": 1, "tags": ["a", "b"]}


def test_resolve_takes_models(client, data):
    """A copy, with the same fields set; the original stays as it is."""

    class Open(pydantic.BaseModel, extra="allow", frozen=True):
        value: Any
        unset: int = 1

    with autobatch.batch():
        lazily = Open(value=[client.get("count")], more=client.get("missing"))
        plainly = autobatch.resolve(lazily)
        assert plainly == Open(value=["3"], more=None)
        assert plainly.model_dump(exclude_unset=True) == {"value": ["3"], "more": None}
        assert type(lazily.more) is autobatch.Future
        assert plainly.more is None
        assert autobatch.resolve(plainly) is plainly


def test_resolve_takes_attrs(client, data):
    kind = attrs.make_class("Thing", ["value"], frozen=True, slots=True)
    with autobatch.batch():
        assert autobatch.resolve([kind(client.get("count"))]) == [kind("3")]


@in_loop
async def test_a_model_of_pending_asyncio_futures(proxy, data):
    """It can be made and resolved; used too early, it says so."""
    async with (
        autobatch.asyncio.Redis(port=proxy.port, decode_responses=True) as client,
        autobatch.batch() as scope,
    ):
        page = Page(views=client.get("count"))
        with pytest.raises(PydanticSerializationError, match="is not there yet: await it"):
            page.model_dump_json()
        with pytest.raises(NotReady):
            BatchModelOfViews(views=client.get("count"))
        assert scope.stats.flushes == 0
        assert (await autobatch.asyncio.resolve(page)).model_dump_json() == (
            '{"views":3,"title":null,"tags":[]}'
        )


class BatchModelOfViews(BatchModel):
    """Of one field."""

    views: int


def test_autobatch_itself_imports_none_of_them():
    """An application that does not use one need not have it."""
    code = "import sys, autobatch.integrations.encoding as e; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {name.partition(".")[0] for name in done.stdout.split()}
    assert "autobatch" in imported
    assert not imported & {"attrs", "fastapi", "litestar", "msgspec", "orjson", "pydantic"}
    assert not imported & {"jinja2", "pydantic_core", "starlette"}
