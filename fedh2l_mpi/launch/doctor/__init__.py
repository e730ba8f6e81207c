"""Check whether a run would work on this machine, and print a fix for each problem.

Only `cli` may import this package.
"""
