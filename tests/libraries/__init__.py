"""Real use of libraries that take a Redis client. `python -m libraries` makes a table of it.

Each module named in `usages.py` has a library's NAME and DISTRIBUTION, `given`, whose last line is
how the library is given a client, and `use`, which calls its main features. What the library gives
goes through `record`.
"""
