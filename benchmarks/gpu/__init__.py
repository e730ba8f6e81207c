"""Checks and measurements on a machine with a GPU; `check` runs them, README.md explains them."""
