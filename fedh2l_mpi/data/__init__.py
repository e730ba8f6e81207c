"""From a data set's files to each participant's tensors.

sources (read images and labels), pack, packing and pictures (photographs in one file), catalogue (which of them, by
name), partition (who holds which rows), rotation (domains), labelled (images on a device), augmentation (random
transformations), seed_set (the shared samples, and each round's views of them), federation (all of it put together for
the participants that a rank hosts).
"""
