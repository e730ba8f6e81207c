"""Make batch jobs for Slurm: check a request as a run would check it, then write the script.

Only `cli` may import this package.
"""
