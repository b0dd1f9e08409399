"""Recall, pre-rank, rank, re-rank: from the whole catalogue to a slate."""

from pylum.funnel.candidates import Candidates
from pylum.funnel.funnel import Funnel, Recommendation
from pylum.funnel.recall import ExactSearch, FaissSearch, InterestRecall, PopularityRecall
from pylum.funnel.rerank import Rerank
from pylum.funnel.scores import InterestScores, RankerScores

__all__ = [
    "Candidates",
    "ExactSearch",
    "FaissSearch",
    "Funnel",
    "InterestRecall",
    "InterestScores",
    "PopularityRecall",
    "RankerScores",
    "Recommendation",
    "Rerank",
]
