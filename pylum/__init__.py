"""pylum: the Large User Model (arXiv 2502.08309) on hand-written kernels."""

from pylum import ops, reference
from pylum.config_report import show_config
from pylum.ragged import Ragged

__version__ = "0.1.0"
__all__ = ["Ragged", "ops", "reference", "show_config"]
