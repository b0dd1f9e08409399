"""Knowledge of users as of moments: :func:`query` makes it, rankers read it."""

from pylum.knowledge.build import query
from pylum.knowledge.knowledge import Knowledge

__all__ = ["Knowledge", "query"]
