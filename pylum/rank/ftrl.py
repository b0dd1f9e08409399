"""FTRL-Proximal: an online optimiser whose L1 term leaves exact zeros."""

from __future__ import annotations

from collections.abc import Iterable

import torch


class FTRL(torch.optim.Optimizer):
    """Per-coordinate FTRL-Proximal (McMahan et al. 2013, algorithm 1).

    Where a coordinate's gradient is zero nothing changes, so untouched rows of a wide table cost
    no arithmetic. A parameter that is not zero at first is one the optimiser would have reached
    without any gradient: a warm start.

    Args:
        params: float32 parameters.
        alpha, beta: learning rate alpha / (beta + sqrt(sum of squared gradients)).
        l1, l2: strength of both terms.

    Raises:
        ValueError: alpha is not positive, or another number is negative.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        alpha: float = 0.05,
        beta: float = 1.0,
        l1: float = 1.0,
        l2: float = 1.0,
    ) -> None:
        if not alpha > 0 or min(beta, l1, l2) < 0:
            raise ValueError(
                f"alpha must be positive, beta, l1 and l2 not negative, got {alpha}, {beta}, "
                f"{l1}, {l2}"
            )
        super().__init__(params, {"alpha": alpha, "beta": beta, "l1": l1, "l2": l2})

    @torch.no_grad()
    def step(self, closure=None):
        """One update with the gradients of the parameters."""
        if closure is not None:
            raise ValueError("closure must be None: FTRL evaluates no loss")
        for group in self.param_groups:
            alpha, beta, l1, l2 = (group[name] for name in ("alpha", "beta", "l1", "l2"))
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["squares"] = torch.zeros_like(p)
                    # The z whose weights are those of p.
                    state["z"] = -p * (beta / alpha + l2) - p.sign() * l1
                flat, grad = p.view(-1), p.grad.reshape(-1)
                at = grad.nonzero().squeeze(1)
                g, w = grad[at], flat[at]
                z, squares = state["z"].view(-1), state["squares"].view(-1)
                before = squares[at]
                after = before + g * g
                moved = z[at] + g - (after.sqrt() - before.sqrt()) / alpha * w
                z[at], squares[at] = moved, after
                shrunk = (moved.abs() - l1).clamp_min(0) * moved.sign()
                flat[at] = -shrunk / ((beta + after.sqrt()) / alpha + l2)
