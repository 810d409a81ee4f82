"""What people look at: the canvas in a terminal, the trace file, the line of statistics."""
