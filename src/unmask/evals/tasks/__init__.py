"""lm-eval task files over local data; where their documents come from, and how answers are judged."""
