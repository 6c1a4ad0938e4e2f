"""What a name may stand for, as far as the linter has to tell."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Client:
    """A Redis client.

    Attributes:
        asynchronous: whether it is an asyncio client; None where only its name tells of it.
        decodes: whether its replies are texts; None where that cannot be seen.
    """

    asynchronous: bool | None = None
    decodes: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Commands:
    """What has commands of a client, such as `client.json()`."""

    client: Client
    methods: frozenset[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Maker:
    """What gives a value when it is called: a function that says so, a registered script."""

    made: Value


@dataclasses.dataclass(frozen=True, slots=True)
class Lazy:
    """A Future, or perhaps one.

    Attributes:
        client: whose.
        truthy: it was tested for truth, so it is not None.
        forced: its error would have been raised at the call.
    """

    client: Client
    truthy: bool = False
    forced: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Items:
    """A list or the like, by what its items may be.

    Attributes:
        item: what one of them may be.
        once: it can be iterated over once, and is no list.
    """

    item: Value = None
    once: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """A tuple or list whose parts are known one by one."""

    parts: tuple[Value, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Entries:
    """A dict, by what its values may be."""

    item: Value = None


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """Something imported or built in, by its full name."""

    path: str


@dataclasses.dataclass(frozen=True, slots=True)
class Other:
    """Something else, whatever its name sounds like."""


Value = Client | Commands | Maker | Lazy | Items | Parts | Entries | Known | Other | None
OTHER = Other()

# Where the branches of a program differ, what may be misread counts.
_RANK = (Lazy, Parts, Items, Entries, Client, Commands, Maker, Known, Other)


def join(one: Value, other: Value) -> Value:
    """Return what a name may stand for that is `one` or `other`."""
    if one == other or other is None:
        return one
    if one is None:
        return other
    if isinstance(one, (Items, Parts)) and isinstance(other, (Items, Parts)):
        return Items(join(item_of(one), item_of(other)))
    if isinstance(one, Entries) and isinstance(other, Entries):
        return Entries(join(one.item, other.item))
    if isinstance(one, Lazy) and isinstance(other, Lazy):
        return Lazy(one.client, one.truthy and other.truthy, one.forced and other.forced)
    return min(one, other, key=lambda value: _RANK.index(type(value)))


def item_of(value: Value) -> Value:
    """Return what iterating over `value` gives."""
    if isinstance(value, Items):
        return value.item
    if isinstance(value, Parts):
        item: Value = None
        for part in value.parts:
            item = join(item, part)
        return item
    return None


def lazy_in(value: Value) -> Lazy | None:
    """Return the Future that `value` is or contains, if any."""
    while isinstance(value, (Items, Parts, Entries)):
        value = value.item if isinstance(value, Entries) else item_of(value)
    return value if isinstance(value, Lazy) else None


class Names:
    """What the names of a scope stand for, dotted ones such as `self.client` too.

    It stays the same object while a scope is walked: the functions inside see how it ends.
    """

    def __init__(self, outer: Names | None = None) -> None:
        self.own: dict[str, Value] = {}
        self.outer = outer
        self._owners: set[str] = set()  # names that have had a dotted one inside

    def __contains__(self, name: str) -> bool:
        return name in self.own or (self.outer is not None and name in self.outer)

    def __getitem__(self, name: str) -> Value:
        if name in self.own:
            return self.own[name]
        return None if self.outer is None else self.outer[name]

    def __setitem__(self, name: str, value: Value) -> None:
        if name in self._owners:
            inside = f"{name}."
            for other in [other for other in self.own if other.startswith(inside)]:
                del self.own[other]
        owner = name.rpartition(".")[0]
        while owner:
            self._owners.add(owner)
            owner = owner.rpartition(".")[0]
        self.own[name] = value

    def joined(self, one: dict[str, Value], other: dict[str, Value]) -> dict[str, Value]:
        """Return what the names may stand for after either of two branches."""
        above = Names() if self.outer is None else self.outer
        return {
            name: join(
                one[name] if name in one else above[name],
                other[name] if name in other else above[name],
            )
            for name in {**one, **other}
        }
