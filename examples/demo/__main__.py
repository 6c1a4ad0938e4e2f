"""`python -m examples.demo --help`."""

import signal

# Until the demo takes over, nothing has to be ended: Ctrl-C needs no traceback of an import.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from examples.demo.run import main  # noqa: E402  # after the line above

main()
