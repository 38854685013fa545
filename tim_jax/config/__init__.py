"""The one place that reads a configuration: its keys, overrides, and the objects that are built from it."""
