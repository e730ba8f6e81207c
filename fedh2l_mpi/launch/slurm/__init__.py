"""Batch jobs for Slurm: a request, checked as a run would be, and the script it becomes."""
