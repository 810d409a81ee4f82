"""Benchmarks of quality and speed, each against a baseline measured in the same run."""
