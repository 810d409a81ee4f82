"""Data files on disk: a checked reader of rows, and the public sets in the forms of their releases."""
