"""The cluster of the tests, which users' tests can have, too."""

from autobatch.testing.cluster import HOST, PATIENCE, SLOTS, Cluster, eventually

__all__ = ["HOST", "PATIENCE", "SLOTS", "Cluster", "eventually"]
