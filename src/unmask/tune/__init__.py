"""Tuning: a decoder's knobs searched for the best of quality and speed on a model and task."""
