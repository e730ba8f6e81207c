"""Attacks on finished runs, which measure what models and messages give away about private data.

Only `cli` may import it.
"""
