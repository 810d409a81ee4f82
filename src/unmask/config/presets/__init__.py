"""Presets: one YAML file a name, in a folder for each group."""
