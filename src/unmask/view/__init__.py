"""Output for people: the canvas in a terminal, progress bars, trace files and reports."""
