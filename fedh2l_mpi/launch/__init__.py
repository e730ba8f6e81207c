"""Programs that start, prepare or examine runs: sweep, slurm, doctor.

Only `cli` may import it.
"""
