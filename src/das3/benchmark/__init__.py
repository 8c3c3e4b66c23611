"""Comparing methods over seeds on suites of domain shifts."""
