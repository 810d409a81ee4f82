"""Code that runs in the sandbox, with `python -I`: it imports the standard library only."""
