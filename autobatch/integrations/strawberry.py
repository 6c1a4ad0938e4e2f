"""Strawberry. One line of set-up.

schema = strawberry.Schema(query=Query, execution_context_class=BatchExecutor)
"""

from __future__ import annotations

from strawberry.schema import schema

from autobatch.integrations.graphql import Batching, DefaultExecutor


class BatchExecutor(
    Batching,
    # Older versions of strawberry have none of their own.
    getattr(schema, "StrawberryGraphQLCoreExecutionContext", DefaultExecutor),  # type: ignore[misc]
):
    """Strawberry's executor, where all Futures of one level share a round trip."""
