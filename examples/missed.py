"""Batches that were missed: what the advice says of each, and what following it gives.

$ python -m examples.missed
header: 3 round trips could be 1; following the advice, it takes 1
-> examples/missed.py:95 forces 1 command; forced after line 96 it would join the next flush: 3
   round trips could be 2
-> examples/missed.py:97 forces 1 command; forced after line 98 it would join the next flush: 2
   round trips could be 1
names: 5 round trips could be 1; following the advice, it takes 1
-> N+1 loop: examples/missed.py:116 forces 5 commands, in 5 flushes (the loop of line 114); call
   line 115 for all turns first, then look at the values: 5 round trips could be 1
likes: 4 round trips could be 1; following the advice, it takes 1
-> N+1 loop: examples/missed.py:129 forces 4 commands, in 4 flushes (the loop of line 133); call
   line 129 for all turns first, then look at the values: 4 round trips could be 1
authors: 8 round trips could be 2; following the advice, it takes 2
-> N+1 loop: examples/missed.py:149 forces 4 commands, in 4 flushes (the loop of line 146); call
   line 148 for all turns first, then look at the values: 8 round trips could be 5
-> N+1 chain: examples/missed.py:148 forces 4 commands, in 4 flushes (the loop of line 146); the
   value goes to line 148: pass it on with .map(), or in a second loop: 5 round trips could be 2
greeting: 6 round trips could be 2; following the advice, it takes 2
-> N+1 loop: examples/missed.py:170 forces 5 commands, in 5 flushes (the loop of line 168); call
   line 169 for all turns first, then look at the values: 6 round trips could be 2
   examples/missed.py:168 needs a value that is passed to the command of line 169: a true
   dependency
page: 8 round trips could be 1; following the advice, it takes 1
-> N+1 loop: examples/missed.py:187 forces 5 commands, in 5 flushes (the loop of line 185); call
   line 186 for all turns first, then look at the values: 8 round trips could be 4
-> examples/missed.py:95 forces 1 command; forced after line 96 it would join the next flush: 4
   round trips could be 3
-> examples/missed.py:97 forces 1 command; forced after line 98 it would join the next flush: 3
   round trips could be 2
-> examples/missed.py:98 forces 1 command; forced after line 186 it would join the next flush: 2
   round trips could be 1
aheader: 3 round trips could be 1; following the advice, it takes 1
-> examples/missed.py:204 awaits 1 command; awaited after line 205 it would join the next flush:
   3 round trips could be 2
-> examples/missed.py:205 awaits 1 command; awaited after line 206 it would join the next flush:
   2 round trips could be 1
anames: 5 round trips could be 1; following the advice, it takes 1
-> N+1 loop: examples/missed.py:219 awaits 5 commands, in 5 flushes (the loop of line 218); call
   line 219 for all turns first, then await: 5 round trips could be 1
aauthors: 8 round trips could be 2; following the advice, it takes 2
-> N+1 loop: examples/missed.py:231 awaits 4 commands, in 4 flushes (the loop of line 236); call
   line 231 for all turns first, then await: 8 round trips could be 5
-> N+1 chain: examples/missed.py:230 awaits 4 commands, in 4 flushes (the loop of line 236); the
   value goes to line 231: pass it on with .map(), or let asyncio.gather() run all turns: 5
   round trips could be 2
aboth_headers: 3 round trips could be 1; following the advice, it takes 1
-> examples/missed.py:204 awaits 2 commands; awaited after line 205 it would join the next
   flush: 3 round trips could be 2
-> examples/missed.py:205 awaits 2 commands; awaited after line 206 it would join the next
   flush: 2 round trips could be 1
"""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import Awaitable, Callable
from typing import Any

import autobatch
import autobatch.asyncio
from autobatch import report
from autobatch.advice import Kind, advise, possible
from examples.server import server_url

redis: Any = autobatch.Redis.from_url(server_url(), decode_responses=True)
aredis: Any = autobatch.asyncio.Redis.from_url(server_url(), decode_responses=True)

TEAM = ["ada", "grace", "alan", "edsger", "barbara"]
POSTS = ["p1", "p2", "p3", "p4"]


def fill() -> None:
    """Write what the pages show."""
    with autobatch.batch():
        redis.set("example:title", "The team")
        redis.set("example:motd", "be brief")
        redis.sadd("example:online", *TEAM[:2])
        redis.delete("example:team")
        redis.rpush("example:team", *TEAM)
        for number, user in enumerate(TEAM):
            redis.hset(f"example:user:{user}", mapping={"name": user.title(), "points": number})
        for number, post in enumerate(POSTS):
            redis.set(f"example:author:{post}", TEAM[number % 2])
            redis.set(f"example:likes:{post}", number * 10)


# ---- early forces: values are looked at before the next command is called -----------------


def header() -> list[str]:
    title = redis.get("example:title")
    lines = [f"== {title} =="]  # early: the title
    motd = redis.get("example:motd")
    lines.append(f"-- {motd} --")  # early: the motd
    lines.append(f"{redis.scard('example:online')} online")
    return lines


def header_after() -> list[str]:
    title = redis.get("example:title")
    motd = redis.get("example:motd")
    online = redis.scard("example:online")
    return [f"== {title} ==", f"-- {motd} --", f"{online} online"]


# ---- an N+1 loop ---------------------------------------------------------------------------


def names() -> list[str]:
    found = []
    for user in TEAM:
        name = redis.hget(f"example:user:{user}", "name")
        found.append(f"* {name}")  # N+1: the name
    return found


def names_after() -> list[str]:
    found = [redis.hget(f"example:user:{user}", "name") for user in TEAM]
    return [f"* {name}" for name in found]


# ---- an N+1 loop whose commands are called by a function -----------------------------------


def likes_of(post: str) -> int:
    return int(redis.get(f"example:likes:{post}"))  # N+1: the likes


def likes() -> list[str]:
    return [str(sum(likes_of(post) for post in POSTS))]


def likes_after() -> list[str]:
    found = [redis.get(f"example:likes:{post}").map(int) for post in POSTS]
    return [str(sum(like.value for like in found))]


# ---- a chain in a loop: a value is an argument of the next command -------------------------


def authors() -> list[str]:
    found = []
    for post in POSTS:
        author = redis.get(f"example:author:{post}")
        name = redis.hget(f"example:user:{author}", "name")  # chain: the author
        found.append(f"{post} by {name}")  # N+1: the author's name
    return found


def name_of(user: str) -> Any:
    return redis.hget(f"example:user:{user}", "name")


def authors_after() -> list[str]:
    found = [redis.get(f"example:author:{post}").map(name_of) for post in POSTS]
    return [f"{post} by {name}" for post, name in zip(POSTS, found, strict=True)]


# ---- true dependencies: a value decides what is called -------------------------------------


def greeting() -> list[str]:
    team = redis.lrange("example:team", 0, -1)
    lines = []
    for user in team:  # dependency: who is in the team
        points = redis.hget(f"example:user:{user}", "points")
        lines.append(f"{user}: {points}")  # N+1: the points
    return lines


def greeting_after() -> list[str]:
    team = redis.lrange("example:team", 0, -1)
    points = [redis.hget(f"example:user:{user}", "points") for user in team]
    return [f"{user}: {number}" for user, number in zip(team, points, strict=True)]


# ---- all of it, one after the other --------------------------------------------------------


def page() -> list[str]:
    lines = header()
    for user in TEAM:
        name = redis.hget(f"example:user:{user}", "name")
        lines.append(f"* {name}")  # N+1: a name on the page
    return lines


def page_after() -> list[str]:
    title = redis.get("example:title")
    motd = redis.get("example:motd")
    online = redis.scard("example:online")
    found = [redis.hget(f"example:user:{user}", "name") for user in TEAM]
    lines = [f"== {title} ==", f"-- {motd} --", f"{online} online"]
    return lines + [f"* {name}" for name in found]


# ---- with asyncio --------------------------------------------------------------------------


async def aheader() -> list[str]:
    title = await aredis.get("example:title")  # early: the title that is awaited
    motd = await aredis.get("example:motd")  # early: the motd that is awaited
    online = await aredis.scard("example:online")
    return [f"== {title} ==", f"-- {motd} --", f"{online} online"]


async def aheader_after() -> list[str]:
    title = aredis.get("example:title")
    motd = aredis.get("example:motd")
    online = aredis.scard("example:online")
    return [f"== {await title} ==", f"-- {await motd} --", f"{await online} online"]


async def anames() -> list[str]:
    return [
        f"* {await aredis.hget(f'example:user:{user}', 'name')}"  # N+1: the name that is awaited
        for user in TEAM
    ]


async def anames_after() -> list[str]:
    found = [aredis.hget(f"example:user:{user}", "name") for user in TEAM]
    return [f"* {await name}" for name in found]


async def aauthor(post: str) -> str:
    author = await aredis.get(f"example:author:{post}")  # chain: the author that is awaited
    name = await aredis.hget(f"example:user:{author}", "name")  # N+1: the author's, awaited
    return f"{post} by {name}"


async def aauthors() -> list[str]:
    return [await aauthor(post) for post in POSTS]


async def aauthors_after() -> list[str]:
    return await asyncio.gather(*[aauthor(post) for post in POSTS])


async def aboth_headers() -> list[str]:
    first, second = await asyncio.gather(aheader(), aheader())
    return first + second


async def aboth_headers_after() -> list[str]:
    first, second = await asyncio.gather(aheader_after(), aheader_after())
    return first + second


PAGES: list[tuple[Callable[[], list[str]], Callable[[], list[str]]]] = [
    (header, header_after),
    (names, names_after),
    (likes, likes_after),
    (authors, authors_after),
    (greeting, greeting_after),
    (page, page_after),
]
APAGES: list[tuple[Callable[[], Awaitable[list[str]]], Callable[[], Awaitable[list[str]]]]] = [
    (aheader, aheader_after),
    (anames, anames_after),
    (aauthors, aauthors_after),
    (aboth_headers, aboth_headers_after),
]


def show(name: str, before: report.ScopeRecord, after: report.ScopeRecord) -> None:
    promised, now, then = possible(before), before.round_trips, after.round_trips
    print(f"{name}: {now} round trips could be {promised}; following the advice, it takes {then}")
    for advice in advise(before):
        mark = "   " if advice.kind is Kind.DEPENDENCY else "-> "
        print(textwrap.fill(str(advice), 96, initial_indent=mark, subsequent_indent="   "))


def main() -> None:
    fill()
    for before, after in PAGES:
        scopes: list[report.ScopeRecord] = []
        with report.subscribe(on_scope=scopes.append):
            for work in (before, after):
                with autobatch.batch():
                    work()
        show(before.__name__, *scopes)


async def amain() -> None:
    for before, after in APAGES:
        scopes: list[report.ScopeRecord] = []
        with report.subscribe(on_scope=scopes.append):
            for work in (before, after):
                async with autobatch.batch():
                    await work()
        show(before.__name__, *scopes)
    await aredis.aclose()


if __name__ == "__main__":
    main()
    asyncio.run(amain())
