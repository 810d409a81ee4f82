"""The command line; nothing imports it. Heavy packages are imported inside the commands."""
