"""Evaluation: tasks, resumable runs, and metrics with documented definitions."""
