"""Protocols' scores with floors and intervals: :func:`evaluate`; metrics by themselves."""

from pylum.evaluate import metrics
from pylum.evaluate.impressions import Comparison, compare
from pylum.evaluate.intervals import Interval, bootstrap, bootstrap_statistic
from pylum.evaluate.next_item import evaluate
from pylum.evaluate.ranking import RankingReport
from pylum.evaluate.report import Report

__all__ = [
    "Comparison",
    "Interval",
    "RankingReport",
    "Report",
    "bootstrap",
    "bootstrap_statistic",
    "compare",
    "evaluate",
    "metrics",
]
