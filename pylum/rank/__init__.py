"""Rankers that read a user model's knowledge: :class:`Ranker`; their rows; their comparison."""

from pylum.rank.as_of import impression_schema, impressions
from pylum.rank.ranker import Ranker
from pylum.rank.schema import Feature, Schema
from pylum.rank.two_tower import TwoTower

__all__ = ["Feature", "Ranker", "Schema", "TwoTower", "impression_schema", "impressions"]
