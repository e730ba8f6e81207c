"""Compute the memory, traffic, disk space and time of a run before it starts.

`build` and every room above it may import it.
"""
