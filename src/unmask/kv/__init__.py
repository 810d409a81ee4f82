"""Stores of keys and values: dense rows, or pages that requests share."""
