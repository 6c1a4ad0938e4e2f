"""People and their friends, in GraphQL: every level of a query is one round trip.

$ python -m examples.graphql_app
...
INFO:     Uvicorn running on http://127.0.0.1:8000 (Press CTRL+C to quit)

$ curl http://127.0.0.1:8000 --json '{"query": "mutation { befriend(name: \"Ada\", friend: \"Grace\") }"}'
{"data":{"befriend":1}}
$ curl http://127.0.0.1:8000 --json '{"query": "{ people { name visits friends { name visits } } }"}'
{"data":{"people":[{"name":"Ada","visits":1,"friends":[{"name":"Grace","visits":1}]}]}}

That query takes three round trips, with one friend as with a thousand: the people, then the visits
and the friends of each, then the visits of all friends.
"""  # noqa: E501

from __future__ import annotations

import os
import signal
from typing import Any

import strawberry
import uvicorn
from strawberry.asgi import GraphQL

import autobatch.asyncio
from autobatch.asgi import BatchMiddleware
from autobatch.integrations.strawberry import BatchExecutor
from examples.server import server_url

redis = autobatch.asyncio.Redis.from_url(server_url(), decode_responses=True)


# No DataLoader, no await: what a resolver calls waits until all of its level has been called.


def people_of(key: str) -> Any:
    names: Any = redis.smembers(key)
    return names.map(lambda found: [Person(name=name) for name in sorted(found)])


def people() -> Any:
    return people_of("example:people")


def friends(root: Person) -> Any:
    return people_of(f"example:friends:{root.name}")


def visits(root: Person) -> Any:
    return redis.hincrby("example:visits", root.name)


def befriend(name: str, friend: str) -> Any:
    redis.sadd("example:people", name)
    return redis.sadd(f"example:friends:{name}", friend)


@strawberry.type
class Person:
    name: str
    visits: int = strawberry.field(resolver=visits)
    friends: list[Person] = strawberry.field(resolver=friends)


@strawberry.type
class Query:
    people: list[Person] = strawberry.field(resolver=people)


@strawberry.type
class Mutation:
    befriend: int = strawberry.mutation(resolver=befriend)


schema = strawberry.Schema(query=Query, mutation=Mutation, execution_context_class=BatchExecutor)
app = BatchMiddleware(GraphQL(schema))


def main() -> None:
    # As for Ctrl-C: what this program has started ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))


if __name__ == "__main__":
    main()
