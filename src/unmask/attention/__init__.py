"""Attention over packed rows, over layers that keep their outputs, and rollout importance."""
