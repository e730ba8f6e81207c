"""What a run needs, computed before it starts: memory, traffic, disk space, time.

`build` and every room above it may import it.
"""
