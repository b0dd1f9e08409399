"""Data sets of behaviours: reading, coding, histories, protocols."""

from pylum.data.columns import ANY
from pylum.data.events import ANY_ROW, OOV_ROW, Events
from pylum.data.histories import Histories
from pylum.data.interactions import Interactions
from pylum.data.items import ItemTable
from pylum.data.movielens import movielens_100k, read_movielens
from pylum.data.schema import Field, Schema
from pylum.data.synthetic import Synthetic
from pylum.data.vocab import Vocab
from pylum.data.vocabs import Vocabs

__all__ = [
    "ANY",
    "ANY_ROW",
    "OOV_ROW",
    "Events",
    "Field",
    "Histories",
    "Interactions",
    "ItemTable",
    "Schema",
    "Synthetic",
    "Vocab",
    "Vocabs",
    "movielens_100k",
    "read_movielens",
]
