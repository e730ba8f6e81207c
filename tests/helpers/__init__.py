"""Runs, files and launches that several test modules use. `tests` is on the path, so: `from helpers import ...`."""
