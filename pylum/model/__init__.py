"""The Large User Model: configuration, token encoder, user encoder."""

from pylum.model.config import LUMConfig
from pylum.model.lum import LUM
from pylum.model.record import TrainingRecord

__all__ = ["LUM", "LUMConfig", "TrainingRecord"]
