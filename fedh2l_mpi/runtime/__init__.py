"""Everything around a process: MPI ranks, devices, clocks, files, logs and the terminal.

Every room may import it, except `config`, `losses`, `rng` and `errors`.
"""
