"""Scaling laws: sweeps over sizes, lengths and data, and the curves fitted to them."""

from pylum.scaling.fit import FORMS, ScalingFit, fit_scaling
from pylum.scaling.runs import Setting, sweep

__all__ = ["FORMS", "ScalingFit", "Setting", "fit_scaling", "sweep"]
