"""The timing of :mod:`pylum.bench`, for the benchmarks of single ops."""

from pylum.bench.harness import compare, interleaved, machine, save

__all__ = ["compare", "interleaved", "machine", "save"]
