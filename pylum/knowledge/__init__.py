"""Knowledge of users as of moments: :func:`query` makes it, rankers read it."""

from pylum.knowledge.knowledge import Knowledge
from pylum.knowledge.query import query

__all__ = ["Knowledge", "query"]
