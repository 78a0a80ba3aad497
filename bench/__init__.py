"""Benchmarks. Every one checks correctness in the run it times and writes its own JSON."""
