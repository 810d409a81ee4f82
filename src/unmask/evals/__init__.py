"""Evaluation: tasks, answers that survive a crash, and numbers that say how they were counted."""
