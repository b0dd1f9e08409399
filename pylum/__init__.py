"""pylum: the Large User Model (arXiv 2502.08309) on hand-written kernels."""

from pylum import ops, reference
from pylum.cache import UserCache
from pylum.config_report import show_config
from pylum.data import ANY, Histories, Interactions, Vocab
from pylum.evaluate import evaluate
from pylum.funnel import Funnel
from pylum.generation import Generation, generate, generate_batches, score
from pylum.index import ItemIndex
from pylum.knowledge import Knowledge, query
from pylum.model import HSTU, LUM, HSTUConfig, LUMConfig, Task
from pylum.ops._library import check
from pylum.ragged import Ragged
from pylum.rank import Ranker
from pylum.scaling import fit_scaling
from pylum.serving import KnowledgeCache
from pylum.train import pretrain

__version__ = "0.1.0"
__all__ = [
    "ANY",
    "HSTU",
    "LUM",
    "Funnel",
    "Generation",
    "HSTUConfig",
    "Histories",
    "Interactions",
    "ItemIndex",
    "Knowledge",
    "KnowledgeCache",
    "LUMConfig",
    "Ragged",
    "Ranker",
    "Task",
    "UserCache",
    "Vocab",
    "check",
    "evaluate",
    "fit_scaling",
    "generate",
    "generate_batches",
    "ops",
    "pretrain",
    "query",
    "reference",
    "score",
    "show_config",
]
