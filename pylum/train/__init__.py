"""Pre-training of the user model."""

from pylum.train.loop import pretrain

__all__ = ["pretrain"]
