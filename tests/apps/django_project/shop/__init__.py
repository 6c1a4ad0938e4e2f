"""An application with a view, a command, and tests of both."""
