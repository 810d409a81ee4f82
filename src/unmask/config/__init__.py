"""Configuration of evaluations from `key=value` overrides and presets."""

from unmask.config.compose import Composed, Sources, Value, compose
from unmask.config.method import method_of
from unmask.config.overrides import sweep

__all__ = ["Composed", "Sources", "Value", "compose", "method_of", "sweep"]
