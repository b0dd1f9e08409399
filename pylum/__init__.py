"""pylum: the Large User Model (arXiv 2502.08309) on hand-written kernels."""

from pylum import ops, reference
from pylum.config_report import show_config
from pylum.data import ANY, Interactions, Vocab
from pylum.model import LUM, LUMConfig
from pylum.ragged import Ragged
from pylum.train import pretrain

__version__ = "0.1.0"
__all__ = [
    "ANY",
    "LUM",
    "Interactions",
    "LUMConfig",
    "Ragged",
    "Vocab",
    "ops",
    "pretrain",
    "reference",
    "show_config",
]
