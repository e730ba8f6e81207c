"""The command line: one file per command, and what they share.

Only `__main__` may import it.
"""
