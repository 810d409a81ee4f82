"""lm-eval task files over local data, with the sources of their documents and the scoring of answers."""
