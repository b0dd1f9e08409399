"""Benchmarks that ship with the package: ``pylum bench``."""
