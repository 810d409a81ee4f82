"""Measurements of the engine: how good and how fast, always against a baseline of the same run."""
