"""A run's life on disk and in its job: reservation, lock, status, checkpoints, resume, stopping.

`simulation`, `api`, `launch` and `cli` may import it.
"""
