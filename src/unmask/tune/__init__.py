"""Tuning: search of a decoder's knobs for quality and speed on a model and task."""
