"""pydantic: models that are given Futures. To serialise those that hold some takes no set-up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from autobatch.future import FUTURE_TYPES, unwrap
from autobatch.resolve import resolve

T = TypeVar("T")


class _KeepLazy:
    """Makes a field keep a Future: it is validated when its value is known."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        schema = handler(source)
        return core_schema.no_info_wrap_validator_function(
            _validate,
            schema,
            serialization=core_schema.wrap_serializer_function_ser_schema(
                _serialize, schema=schema
            ),
        )


def _validate(value: Any, validate: Any) -> Any:
    return value.map(validate) if type(value) in FUTURE_TYPES else validate(value)


def _serialize(value: Any, serialize: Any) -> Any:
    return serialize(unwrap(value))


if TYPE_CHECKING:  # they take Futures, whose types nobody knows
    Lazy: TypeAlias = T | Any
    Resolved: TypeAlias = T | Any
else:
    # `views: Lazy[int]`: the field takes an int, or a Future that it keeps as it is. No round trip
    # is taken for it until the model is serialised, or the value is used.
    Lazy = Annotated[T, _KeepLazy()]
    # `views: Resolved[int]`: the field takes Futures, and holds their plain values.
    Resolved = Annotated[T, BeforeValidator(resolve)]


class BatchModel(BaseModel):
    """A model whose fields all take Futures, and hold their plain values: one flush a model."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, data: Any) -> Any:
        return resolve(data)
