"""`python -m autobatch`: what can be done from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from autobatch.demo import cli as demo
from autobatch.lint import cli as lint
from autobatch.recorded import cli as recorded

# Each adds its commands to the parser.
_COMMANDS = (demo, lint, recorded)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m autobatch", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_to(commands)
    options = parser.parse_args(arguments)
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
