"""From a data set's files to each participant's tensors.

sources (read images and labels), partition (who holds which rows), rotation (domains), seed_set (the shared samples),
federation (all of it put together for the participants that a rank hosts).
"""
