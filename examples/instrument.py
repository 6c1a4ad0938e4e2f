"""Adoption without an edit: a client of redis-py's own, in code that knows nothing of batches.

$ python -m examples.instrument
as it was: 6 users, a Future? False
inside a scope: 6 users, a Future? True
Stats(commands=12, flushes=1, round_trips=1, exchanges=1)
an excluded module: 'nobody' has no name
as it was: 6 users, a Future? False
"""

from __future__ import annotations

import autobatch
from examples import shop_of_others as shop


def page() -> str:
    names = [shop.name_and_visit(number) for number in range(6)]
    return f"{len(names)} users, a Future? {isinstance(names[0], autobatch.Future)}"


def main() -> None:
    shop.open_shop()
    print("as it was:", page())

    # Once, where the program starts: redis-py's own clients batch inside scopes from now on,
    # those that exist already, and those that other modules make.
    autobatch.instrument()
    with autobatch.batch() as scope:
        print("inside a scope:", page())
    print(scope.stats)

    # Calls of a module that tests replies with `is None` run at once, after what waits.
    with autobatch.instrument(exclude=["examples.shop_of_others"]), autobatch.batch():
        print("an excluded module:", shop.greeting("nobody"))

    autobatch.uninstrument()
    with autobatch.batch():
        print("as it was:", page())


if __name__ == "__main__":
    main()
