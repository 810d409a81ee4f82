"""Constraints on an answer: descriptions, their automata over bytes and tokens, and reachability."""
