"""Data sets, and each participant's tensors of them: sources, packs, partition, domains, augmentation, the seed set.

`exchange`, `participant` and every room above them may import it.
"""
