"""Attention backends: packed rows, layers that store their outputs, and rollout importance."""
