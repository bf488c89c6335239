"""What is hand-made for the speed of a CPU, one way in each for training and decoding; it imports torch."""

from po_assets.model.cpu.decoding import BlockCache, prepare_for_decoding
from po_assets.model.cpu.training import FastPath, fast_training, linear_cross_entropy

__all__ = ["BlockCache", "FastPath", "fast_training", "linear_cross_entropy", "prepare_for_decoding"]
