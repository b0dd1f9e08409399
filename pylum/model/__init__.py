"""The user models: configuration, token encoder, user encoder."""

from pylum.model.base import UserModel
from pylum.model.config import LUMConfig
from pylum.model.hstu import HSTU
from pylum.model.hstu_config import HSTUConfig, Task
from pylum.model.loading import load_model
from pylum.model.lum import LUM
from pylum.model.record import TrainingRecord

__all__ = [
    "HSTU",
    "LUM",
    "HSTUConfig",
    "LUMConfig",
    "Task",
    "TrainingRecord",
    "UserModel",
    "load_model",
]
