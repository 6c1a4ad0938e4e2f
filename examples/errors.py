"""Where errors surface, and which commands are dropped.

$ python -m examples.errors
at its Future:
  ResponseError: value is not an integer or out of range
  - INCRBY example:word, queued at errors.py:53 in at_its_future
  the word is hello
Stats(commands=2, flushes=1, round_trips=1, exchanges=1)
at the end of the scope:
  ResponseError: value is not an integer or out of range
  - INCRBY example:word, queued at errors.py:69 in at_the_end
  - Also failed: ResponseError: value is not an integer or out of range (DECRBY
    example:word, queued at errors.py:70 in at_the_end)
  <Future done: 1>
Stats(commands=3, flushes=1, round_trips=1, exchanges=1)
when the program fails:
  <Future done: 2>
Stats(commands=1, flushes=1, round_trips=1, exchanges=1)
when the program fails, with on_error="discard":
  <Future failed: RPUSH example:orders: NotSent>
Stats(commands=1, flushes=0, round_trips=0, exchanges=0)
discarded by hand:
  NotSent: RPUSH example:orders was not sent: its scope was discarded
  - RPUSH example:orders, queued at errors.py:106 in by_hand
Stats(commands=1, flushes=0, round_trips=0, exchanges=0)
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from redis.exceptions import ResponseError

import autobatch
from examples.server import server_url

redis = autobatch.Redis.from_url(server_url(), decode_responses=True)


def show(error: BaseException) -> None:
    print(f"  {type(error).__name__}: {error}")
    for note in error.__notes__:
        short = note.replace(f"{Path(__file__).parent}/", "")
        print(textwrap.fill(short, 88, initial_indent="  - ", subsequent_indent="    "))


def at_its_future() -> None:
    # A failed command raises where its value is needed. A note tells the line that called it.
    # The other commands of the batch are not touched.
    print("at its Future:")
    with autobatch.batch() as scope:
        count = redis.incr("example:word")
        word = redis.get("example:word")
        try:
            print(count + 1)
        except ResponseError as error:
            show(error)
        print("  the word is", word)
    print(scope.stats)


def at_the_end() -> None:
    # Errors that nobody has looked at are not lost: the end of the scope raises the first one,
    # with the others as its notes.
    print("at the end of the scope:")
    try:
        with autobatch.batch() as scope:
            redis.incr("example:word")
            redis.decr("example:word")
            length = redis.rpush("example:orders", "tea")
    except ResponseError as error:
        show(error)
    print(f"  {length!r}")
    print(scope.stats)


def flushed() -> None:
    # What was called is sent also when the program fails, as it would be without batching.
    print("when the program fails:")
    try:
        with autobatch.batch() as scope:
            length = redis.rpush("example:orders", "tea")
            int("a dozen")
    except ValueError:
        print(f"  {length!r}")
    print(scope.stats)


def discarded() -> None:
    # Unless the scope is told to drop what it has not sent yet.
    print('when the program fails, with on_error="discard":')
    try:
        with autobatch.batch(on_error="discard") as scope:
            length = redis.rpush("example:orders", "tea")
            int("a dozen")
    except ValueError:
        print(f"  {length!r}")
    print(scope.stats)


def by_hand() -> None:
    # A Future that was dropped says so to everybody who needs its value.
    print("discarded by hand:")
    with autobatch.batch() as scope:
        length = redis.rpush("example:orders", "tea")
        scope.discard()
        try:
            print(length + 1)
        except autobatch.errors.NotSent as error:
            show(error)
    print(scope.stats)


def main() -> None:
    redis.set("example:word", "hello")
    redis.delete("example:orders")
    at_its_future()
    at_the_end()
    flushed()
    discarded()
    by_hand()


if __name__ == "__main__":
    main()
