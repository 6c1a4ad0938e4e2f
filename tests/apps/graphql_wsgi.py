"""What test_graphql.py serves: Strawberry's view for Flask, which executes synchronously."""

from __future__ import annotations

import os
from typing import Any

import strawberry
from flask import Flask
from strawberry.flask.views import GraphQLView

import autobatch
from autobatch.integrations.strawberry import BatchExecutor
from autobatch.wsgi import BatchMiddleware

redis = autobatch.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)


@strawberry.type
class User:
    """A user."""

    key: strawberry.Private[str]

    @strawberry.field(graphql_type=str | None)
    def name(self) -> Any:
        return redis.hget(self.key, "name")

    @strawberry.field(graphql_type=int | None)
    def length(self) -> Any:
        return redis.llen(self.key)

    @strawberry.field(graphql_type="User")
    def friend(self) -> Any:
        return redis.hget(self.key, "friend").map(lambda key: User(key=key))


@strawberry.type
class Query:
    """What can be asked."""

    @strawberry.field(graphql_type=list[User])
    def users(self) -> Any:
        return redis.lrange("users", 0, -1).map(lambda keys: [User(key=key) for key in keys])


schema = strawberry.Schema(query=Query, execution_context_class=BatchExecutor)
app = Flask(__name__)
app.add_url_rule("/", view_func=GraphQLView.as_view("graphql", schema=schema))
app.wsgi_app = BatchMiddleware(app.wsgi_app)
