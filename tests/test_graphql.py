"""GraphQL: one round trip a level, with graphql-core and with Strawberry, and its own errors."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import redis

import autobatch
import autobatch.asyncio

for needed in ("graphql", "strawberry", "uvicorn", "httpx"):
    pytest.importorskip(needed)

import graphql  # noqa: E402
import strawberry  # noqa: E402

from autobatch.integrations import strawberry as batching_strawberry  # noqa: E402
from autobatch.integrations.graphql import BatchExecutor  # noqa: E402
from common import code_of  # noqa: E402
from looping import tidy  # noqa: E402
from serving import serve  # noqa: E402

ROOT = Path(__file__).parent.parent
# graphql-core 3.2 calls it by another name.
OURS = {
    name: BatchExecutor
    for name in inspect.signature(graphql.graphql_sync).parameters
    if name in {"executor_class", "execution_context_class"}
}
SCHEMA = """
    type User {
        name: String
        must: String!
        friend: User
        friends: [User!]!
        length: Int
        mustLength: Int!
        deep: User
    }
    type Query {
        user(number: Int): User
        users: [User]
        names: [String]
        nested: [[String]]
        count: Int
        boss: User!
        crowd: [String!]
    }
    type Mutation { first: Int, second: Int }
    type Subscription { users: [User] }
"""


def schema_of(resolvers):
    """Return the schema with its resolvers, which are named as `Type_field`."""
    schema = graphql.build_schema(SCHEMA)
    for name, resolver in resolvers.items():
        kind, _, field = name.partition("_")
        schema.type_map[kind].fields[field].resolve = resolver
    return schema


def resolvers_of(redis):
    """Return the resolvers that need nothing but a client: a user is its key."""
    return {
        "User_name": lambda user, info: redis.hget(user, "name"),
        "User_must": lambda user, info: redis.hget(user, "name"),
        "User_friend": lambda user, info: redis.hget(user, "friend"),
        "User_friends": lambda user, info: redis.lrange(f"{user}:friends", 0, -1),
        "User_length": lambda user, info: redis.llen(user),
        "User_mustLength": lambda user, info: redis.llen(user),
        "User_deep": lambda user, info: redis.hget(user, "friend"),
        "Query_user": lambda _, info, number: redis.get(f"id:{number}"),
        "Query_users": lambda _, info: redis.lrange("users", 0, -1),
        "Query_names": lambda _, info: [redis.hget(f"user:{n}", "name") for n in range(5)],
        "Query_nested": lambda _, info: [
            (redis.hget(f"user:{n}", "name"), redis.get(f"id:{n}")) for n in range(2)
        ],
        "Query_count": lambda _, info: redis.llen("users"),
        "Query_boss": lambda _, info: redis.get("id:0"),
        "Query_crowd": lambda _, info: redis.lrange("users", 0, -1),
        "Mutation_first": lambda _, info: redis.incr("mutations"),
        "Mutation_second": lambda _, info: redis.incr("mutations"),
    }


@pytest.fixture
def data(plain):
    """Four users, each with a friend and two friends; the next is missing."""
    for number in range(4):
        user = f"user:{number}"
        plain.hset(user, mapping={"name": f"name{number}", "friend": f"user:{(number + 1) % 4}"})
        plain.rpush(f"{user}:friends", *[f"user:{(number + more) % 4}" for more in (1, 2)])
        plain.set(f"id:{number}", user)
        plain.rpush("users", user)


def in_short(result):
    """Return the data, and where which error is."""
    errors = [(error.path, error.message.split()[0]) for error in result.errors or ()]
    return result.data, sorted(errors, key=repr)


def schema_with(client, more):
    """Return the schema that asks `client`; `more` gives other resolvers for one."""
    return schema_of(resolvers_of(client) | more(client))


def nothing(_):
    return {}


def synchronously(port, query, more=nothing):
    """graphql_sync, and a synchronous client."""
    with autobatch.Redis(port=port, decode_responses=True) as client, autobatch.batch():
        return graphql.graphql_sync(schema_with(client, more), query, **OURS)


def in_threads(port, query, more=nothing):
    """The executor of asyncio, and a synchronous client, which may not block the loop."""

    async def main():
        with autobatch.Redis(port=port, decode_responses=True) as client:
            async with autobatch.batch():
                return await graphql.graphql(schema_with(client, more), query, **OURS)

    return asyncio.run(tidy(main()))


def with_asyncio(port, query, more, options):
    async def main():
        async with (
            autobatch.asyncio.Redis(port=port, decode_responses=True) as client,
            autobatch.batch(),
        ):
            return await graphql.graphql(schema_with(client, more), query, **options)

    return asyncio.run(tidy(main()))


def asynchronously(port, query, more=nothing):
    """The executor of asyncio, and its client."""
    return with_asyncio(port, query, more, OURS)


def as_it_is(port, query, more=nothing):
    """The same, without our executor."""
    return with_asyncio(port, query, more, {})


WAYS = [synchronously, in_threads, asynchronously, as_it_is]
every_way = pytest.mark.parametrize("execute", WAYS)

# What each level takes, in commands.
LEVELS = {
    "{ count names boss { name } }": [1 + 5 + 1, 1],
    "{ users { name } }": [1, 4],
    "{ users { name friend { name friend { name } } } }": [1, 8, 8, 4],
    "{ users { friends { name friends { name } } } }": [1, 4, 16, 16],
    "{ user(number: 1) { name } other: user(number: 2) { friend { name } } count }": [3, 2, 1],
    "{ nested names }": [4 + 5],
    "{ missing: user(number: 9) { name } user(number: 3) { must } }": [2, 1],
    "{ users { length } count }": [2, 4],
    "{ users { mustLength } count }": [2, 4],
    "{ users { name friend { mustLength name } } boss { name } }": [2, 9, 8],
    "{ boss { mustLength friend { name } } count }": None,  # where it ends depends on the version
    # graphql-core 3.2 calls them all at once: Redis sees their order, as GraphQL wants it.
    "mutation { first second third: first }": [1, 1, 1] if "executor_class" in OURS else [3],
}


@every_way
@pytest.mark.parametrize("query", LEVELS)
def test_a_level_is_a_round_trip(query, execute, data, plain, proxy):
    """The data and the errors are those of redis-py's client, which asks one by one."""
    expected = graphql.graphql_sync(schema_of(resolvers_of(plain)), query)
    plain.delete("mutations")
    result = execute(proxy.port, query)
    assert in_short(result) == in_short(expected)
    if LEVELS[query] is not None:
        assert [len(exchange) for exchange in proxy.exchanges] == LEVELS[query]


@every_way
def test_an_error_is_that_of_its_field(execute, data, proxy):
    """Its siblings survive, and nothing is raised at the end of the scope."""
    result = execute(proxy.port, "{ user(number: 1) { name length friend { name length } } count }")
    assert result.data == {
        "user": {"name": "name1", "length": None, "friend": {"name": "name2", "length": None}},
        "count": 4,
    }
    assert sorted(error.path for error in result.errors) == [
        ["user", "friend", "length"],
        ["user", "length"],
    ]
    assert all(isinstance(error.original_error, redis.ResponseError) for error in result.errors)


@every_way
def test_what_is_missing_is_null(execute, data, proxy):
    """Of the last of them there is nothing."""
    result = execute(proxy.port, "{ names user(number: 9) { name } }")
    assert result.data == {"names": ["name0", "name1", "name2", "name3", None], "user": None}
    assert result.errors is None


@every_way
def test_a_missing_value_is_no_value_of_a_type_without_null(execute, data, proxy, plain):
    """GraphQL's own error, at its path."""
    plain.hdel("user:2", "name")
    result = execute(proxy.port, "{ users { must } }")
    assert [user and user["must"] for user in result.data["users"]] == [
        "name0",
        "name1",
        None,
        "name3",
    ]
    assert [error.path for error in result.errors] == [["users", 2, "must"]]


def field(redis, number=0):
    return redis.hget(f"user:{number}", "name")


# Whatever a resolver may return for a list of names, made with a client.
LISTS = {
    "a tuple": lambda redis: (field(redis, 0), "plain", None, field(redis, 1)),
    "a generator": lambda redis: (field(redis, number) for number in range(2)),
    "a map": lambda redis: map(functools.partial(field, redis), range(2)),
    "values": lambda redis: {number: field(redis, number) for number in range(2)}.values(),
    "a Future of a list": lambda redis: redis.lrange("users", 0, -1),
    "a Future of Futures": lambda redis: redis.lrange("users", 0, -1).map(
        lambda users: [redis.hget(user, "name") for user in users]
    ),
    "a set": lambda redis: {"plain"},
    "nothing": lambda redis: [],
}


NAMES = [f"name{number}" for number in range(4)]
EXPECTED = {
    "a tuple": (["name0", "plain", None, "name1"], 1),
    "a generator": (NAMES[:2], 1),
    "a map": (NAMES[:2], 1),
    "values": (NAMES[:2], 1),
    "a Future of a list": ([f"user:{number}" for number in range(4)], 1),
    "a Future of Futures": (NAMES, 2),
    "a set": (["plain"], 0),
    "nothing": ([], 0),
}


@pytest.mark.parametrize("kind", LISTS)
@every_way
def test_lists_of_all_kinds(execute, kind, data, proxy):
    """Their Futures share a round trip."""
    expected, round_trips = EXPECTED[kind]

    def more(client):
        return {"Query_names": lambda _, info: LISTS[kind](client)}

    result = execute(proxy.port, "{ names }", more)
    assert (result.data, result.errors) == ({"names": expected}, None)
    assert proxy.round_trips == round_trips


@every_way
def test_dicts_that_hold_futures(execute, data, proxy):
    """As sources of fields without a resolver of their own."""

    def more(client):
        def person(number):
            key = f"user:{number}"
            return {"name": client.hget(key, "name"), "friend": client.hgetall(key)}

        return {
            "Query_users": lambda _, info: [person(0), person(1)],
            "User_name": None,
            "User_friend": None,
        }

    result = execute(proxy.port, "{ users { name friend { name } } }", more)
    assert result.data == {
        "users": [
            {"name": "name0", "friend": {"name": "name0"}},
            {"name": "name1", "friend": {"name": "name1"}},
        ]
    }
    assert proxy.names == [["HGET", "HGETALL"] * 2]


@every_way
def test_a_resolver_that_raises(execute, data, proxy):
    """Its error is its field's, and what it has called before is sent."""

    def more(client):
        def broken(_, info):
            client.incr("called")
            raise ValueError("broken")

        return {"Query_count": broken}

    result = execute(proxy.port, "{ names count users { name } }", more)
    assert [(error.path, error.message) for error in result.errors] == [(["count"], "broken")]
    assert result.data["count"] is None
    assert [len(exchange) for exchange in proxy.exchanges] == [5 + 1 + 1, 4]


# A user's `mustLength` fails, so the user is null; meanwhile its `deep` goes on, and fails later.
OVERTAKEN = "{ boss { name mustLength deep { name deep { mustLength length deep { length } } } } }"


@pytest.mark.parametrize("execute", [synchronously, in_threads, asynchronously])
def test_errors_below_what_is_null_are_not_raised(execute, data, proxy):
    """GraphQL tells of one; the end of the scope does not turn the others into a server's error."""

    def more(client):
        # The sibling is a level deeper when the field that may not be null fails.
        return {
            "Query_boss": lambda _, info: client.get("id:0"),
            "User_mustLength": lambda user, info: client.get("id:0").map(client.llen),
        }

    result = execute(proxy.port, OVERTAKEN, more)
    assert result.data is None
    assert result.errors[0].path in (
        ["boss", "mustLength"],
        ["boss", "deep", "deep", "mustLength"],
    )


@pytest.mark.parametrize("execute", WAYS)
def test_middleware_of_the_application_stays(execute, data, proxy, monkeypatch):
    """It sees what the resolvers return: Futures."""
    seen = []

    def middleware(next_, root, info, **args):
        value = next_(root, info, **args)
        seen.append((info.field_name, isinstance(value, autobatch.Future), type(value)))
        return value

    for name in ("graphql", "graphql_sync"):
        original = getattr(graphql, name)
        monkeypatch.setattr(graphql, name, functools.partial(original, middleware=[middleware]))
    result = execute(proxy.port, "{ count users { name } }")
    assert result.data["users"][0] == {"name": "name0"}
    assert [name for name, _, _ in seen] == ["count", "users", *["name"] * 4]
    assert all(issubclass(kind, autobatch.Future) for _, _, kind in seen)


def test_resolvers_see_no_event_loop(data, proxy):
    """Where there is none: what refuses to work in one, such as Django's models, works."""
    seen = []
    django = pytest.importorskip("django.utils.asyncio").async_unsafe(lambda: None)

    def more(client):
        def name(user, info):
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
            django()
            seen.append(user)
            return f"{client.hget(user, 'name')}"  # and no warning that it blocks a loop

        return {"User_name": name}

    result = synchronously(proxy.port, "{ users { name friend { name } } }", more)
    assert result.data["users"][0] == {"name": "name0", "friend": {"name": "name1"}}
    assert len(seen) == 8


@pytest.mark.parametrize("options", [{}, {"check_sync": True}])
def test_what_needs_an_event_loop_fails(options, data, client):
    """A coroutine that waits for something else does not complete synchronously."""
    ended = []

    async def count(_, info):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("count")

    schema = schema_of(resolvers_of(client) | {"Query_count": count})
    with autobatch.batch(), pytest.raises(RuntimeError, match="failed to complete synchronously"):
        graphql.graphql_sync(schema, "{ users { name } count }", **OURS, **options)
    assert ended == ["count"]


@pytest.mark.parametrize("execute", [synchronously, in_threads, asynchronously])
def test_coroutine_functions_may_return_futures(execute, data, proxy):
    """It makes no difference that nobody awaits them."""

    def more(client):
        async def users(_, info):
            return client.lrange("users", 0, -1)

        async def name(user, info):
            return client.hget(user, "name")

        async def names(_, info):
            return [client.hget("user:0", "name"), "plain"]

        return {"Query_users": users, "User_name": name, "Query_names": names}

    result = execute(proxy.port, "{ users { name } names }", more)
    assert result.data == {
        "users": [{"name": name} for name in NAMES],
        "names": ["name0", "plain"],
    }
    assert [len(exchange) for exchange in proxy.exchanges] == [2, 4]


def test_a_synchronous_execution_in_an_event_loop(data, proxy):
    """It blocks the loop, which is told of as ever, and is right."""

    async def main():
        with pytest.warns(autobatch.errors.BlockingFlushWarning):
            result = synchronously(proxy.port, "{ users { name } }")
        await asyncio.sleep(0)  # the loop goes on
        return result

    result = asyncio.run(tidy(main()))
    assert result.data == {"users": [{"name": name} for name in NAMES]}
    assert [len(exchange) for exchange in proxy.exchanges] == [1, 4]


def test_an_asyncio_client_needs_a_loop(data, proxy):
    """Without one its fields fail, and their siblings do not."""

    def more(_):
        client = autobatch.asyncio.Redis(port=proxy.port)
        return {"Query_count": lambda _, info: client.llen("users")}

    result = synchronously(proxy.port, "{ count users { name } }", more)
    assert result.data == {"count": None, "users": [{"name": name} for name in NAMES]}
    [error] = result.errors
    assert error.path == ["count"]
    assert "event loop" in str(error.original_error)


def test_an_interrupt_passes(data, proxy):
    """Also from a level that is resolved between flushes."""

    def more(client):
        def interrupt(user, info):
            raise KeyboardInterrupt

        return {"User_name": interrupt}

    with pytest.raises(KeyboardInterrupt):
        synchronously(proxy.port, "{ users { name } count }", more)
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    assert [len(exchange) for exchange in proxy.exchanges] == [2]


@every_way
def test_outside_a_scope(execute, data, proxy, monkeypatch):
    """A synchronous client gives plain values; an asyncio one's share a round trip all the same."""
    monkeypatch.setattr(autobatch, "batch", contextlib.nullcontext)
    result = execute(proxy.port, "{ users { name } }")
    assert result.data["users"] == [{"name": name} for name in NAMES]
    asynchronous = execute in (asynchronously, as_it_is)
    assert proxy.names == (
        [["LRANGE"], ["HGET"] * 4] if asynchronous else [["LRANGE"], *[["HGET"]] * 4]
    )


def test_events_of_a_subscription(data, proxy):
    """Each is executed, and takes its round trips."""

    async def main():
        async with autobatch.asyncio.Redis(port=proxy.port, decode_responses=True) as client:
            schema = schema_of(resolvers_of(client))

            async def events(_, info):
                yield {"users": client.lrange("users", 0, 1)}
                yield {"users": client.lrange("users", 2, 3)}

            schema.subscription_type.fields["users"].subscribe = events
            document = graphql.parse("subscription { users { name } }")
            takes = inspect.signature(graphql.subscribe).parameters  # not always such a class
            options = {name: OURS[name] for name in OURS if name in takes}
            found = graphql.subscribe(schema, document, **options)
            found = await found if inspect.isawaitable(found) else found
            async with autobatch.batch():
                return [event.data["users"] async for event in found]

    events = asyncio.run(tidy(main()))
    assert events == [[{"name": name} for name in NAMES[start : start + 2]] for start in (0, 2)]
    assert proxy.names == [["LRANGE"], ["HGET", "HGET"]] * 2


# ---- Strawberry ------------------------------------------------------------------------------


@strawberry.type
class User:
    """A user again. The client is in the context."""

    key: strawberry.Private[str]

    @strawberry.field(graphql_type=str | None)
    def name(self, info: strawberry.Info) -> Any:
        return info.context.hget(self.key, "name")

    @strawberry.field(graphql_type="User")
    def friend(self, info: strawberry.Info) -> Any:
        return info.context.hget(self.key, "friend").map(lambda key: User(key=key))

    @strawberry.field(graphql_type=int | None)
    def length(self, info: strawberry.Info) -> Any:
        return info.context.llen(self.key)


@strawberry.type
class Query:
    """What can be asked."""

    @strawberry.field(graphql_type=list[User])
    def users(self, info: strawberry.Info) -> Any:
        keys = info.context.lrange("users", 0, -1)
        return keys.map(lambda keys: [User(key=key) for key in keys])

    @strawberry.field(graphql_type=list[str | None])
    def names(self, info: strawberry.Info) -> Any:
        return [info.context.hget(f"user:{number}", "name") for number in range(5)]


BATCHING = strawberry.Schema(query=Query, execution_context_class=batching_strawberry.BatchExecutor)
BARE = strawberry.Schema(query=Query)


def strawberry_sync(port, query):
    """Its synchronous views."""
    with autobatch.Redis(port=port, decode_responses=True) as client, autobatch.batch():
        return BATCHING.execute_sync(query, context_value=client)


def strawberry_in_threads(port, query):
    """Its asynchronous views, with a synchronous client."""

    async def main():
        with autobatch.Redis(port=port, decode_responses=True) as client:
            async with autobatch.batch():
                return await BATCHING.execute(query, context_value=client)

    return asyncio.run(tidy(main()))


def strawberry_with_asyncio(port, query, schema):
    async def main():
        async with (
            autobatch.asyncio.Redis(port=port, decode_responses=True) as client,
            autobatch.batch(),
        ):
            return await schema.execute(query, context_value=client)

    return asyncio.run(tidy(main()))


def strawberry_async(port, query):
    """Its asynchronous views, with an asyncio client."""
    return strawberry_with_asyncio(port, query, BATCHING)


def strawberry_as_it_is(port, query):
    """Without our executor."""
    return strawberry_with_asyncio(port, query, BARE)


@pytest.mark.parametrize(
    "execute", [strawberry_sync, strawberry_in_threads, strawberry_async, strawberry_as_it_is]
)
def test_strawberry(execute, data, proxy, caplog):
    """A round trip a level, and errors at their fields."""
    result = execute(proxy.port, "{ names users { name length friend { name } } }")
    assert result.data["names"] == [*NAMES, None]
    assert result.data["users"][3] == {
        "name": "name3",
        "length": None,
        "friend": {"name": "name0"},
    }
    assert [error.path for error in result.errors] == [
        ["users", number, "length"] for number in range(4)
    ]
    assert [len(exchange) for exchange in proxy.exchanges] == [6, 12, 4]


def test_a_synchronous_view(server, data):
    """Under gunicorn, with real requests: errors are GraphQL's, and no error of the server."""
    pytest.importorskip("flask")
    command = ["gunicorn", "apps.graphql_wsgi:app", "--bind", "127.0.0.1:0", "--threads", "2"]
    with serve(*command, redis_port=server) as site:
        site.forget()
        response = site.http.post("/", json={"query": "{ users { name friend { name length } } }"})
        assert response.status_code == 200
        assert response.json()["data"]["users"][3] == {
            "name": "name3",
            "friend": {"name": "name0", "length": None},
        }
        assert [error["path"] for error in response.json()["errors"]] == [
            ["users", number, "friend", "length"] for number in range(4)
        ]
        assert [len(exchange) for exchange in site.proxy.exchanges] == [1, 8, 8]


def test_the_example(server, plain):
    """Its docstring tells what it answers; as many levels, as many round trips."""
    befriend = 'mutation { befriend(name: "Ada", friend: "Grace") }'
    people = "{ people { name visits friends { name visits } } }"
    with serve("examples.graphql_app", redis_port=server, cwd=ROOT) as site:
        plain.flushall()
        site.forget()
        answers = [
            site.http.post("/", json={"query": query}).json() for query in (befriend, people)
        ]
        source = (ROOT / "examples" / "graphql_app.py").read_text()
        promised = re.findall(r'^{"data".*', source, re.MULTILINE)
        assert [json.loads(answer) for answer in promised] == answers
        assert site.proxy.names == [
            ["SADD", "SADD"],
            ["SMEMBERS"],
            ["HINCRBY", "SMEMBERS"],
            ["HINCRBY"],
        ]


def test_the_documentation(client, plain, capsys):
    """Its code runs, and prints what its comments say."""
    plain.sadd("users", "user:1")
    plain.hset("user:1", mapping={"name": "Ada", "friend": "user:2"})
    plain.hset("user:2", mapping={"name": "Grace"})
    [code] = code_of(ROOT / "docs" / "graphql.md")
    module = types.ModuleType("documentation")
    module.__dict__.update(autobatch=autobatch, redis=client)
    sys.modules["documentation"] = module  # where Strawberry looks for the types
    try:
        exec(compile(code, "docs/graphql.md", "exec"), module.__dict__)
    finally:
        del sys.modules["documentation"]
    assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*\)  # (.*)", code)
