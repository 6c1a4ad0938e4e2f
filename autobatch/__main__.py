"""`python -m autobatch`: what can be done from the command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from autobatch.demo import cli as demo
from autobatch.lint import cli as lint
from autobatch.recorded import cli as recorded

# Each adds its commands to the parser.
_COMMANDS = (demo, lint, recorded)
# What a shell says of a program that SIGPIPE has ended.
_NOT_READ = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m autobatch", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_to(commands)
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # such as of `| head`
        # The interpreter flushes once more as it ends (Python's documentation on SIGPIPE).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NOT_READ
    return status


if __name__ == "__main__":
    sys.exit(main())
