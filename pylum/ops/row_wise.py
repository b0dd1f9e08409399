"""Gradients of a table merged per row, and optimisers that update each used row once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from pylum import _C
from pylum.ops._library import register, run_on


class RowUse(NamedTuple):
    """One use of a table's rows and the loss gradient there.

    Args:
        indices: ``[lookups]`` int64 rows, any stride.
        grad: ``[lookups, dim]``, or ``[bags, dim]`` with ``offsets``; float32, bfloat16 or, on
            CUDA, float16, last dimension contiguous, rows any stride apart (a column slice of a
            wider gradient).
        offsets: ``[bags + 1]`` int64, contiguous: every index of bag b has the gradient
            ``grad[b]``, divided by the bag's size where ``mode`` is ``"mean"``.
        mode: ``"sum"`` or ``"mean"``.
    """

    indices: torch.Tensor
    grad: torch.Tensor
    offsets: torch.Tensor | None = None
    mode: Literal["sum", "mean"] = "sum"


def row_wise_adagrad_(
    table: torch.Tensor,
    state: torch.Tensor,
    uses: Sequence[RowUse | tuple],
    *,
    lr: float,
    eps: float = 1e-8,
) -> None:
    """Adagrad with one accumulator per row, in place, on the rows that were used.

    The gradients ``g`` of a row are first summed over all uses, in float32 and in the order of the
    uses, so that duplicates and several roles of a table (LUM's items are input and output) make
    one update. Then, as FBGEMM's exact row-wise Adagrad::

        state[row] += mean(g ** 2)
        table[row] -= lr * g / (sqrt(state[row]) + eps)

    Rows without a use do not change. The result does not depend on the number of threads. The
    update is outside autograd, and nothing is written where an argument is wrong.

    Args:
        table: ``[rows, dim]`` float32, bfloat16 or, on CUDA, float16, last dimension contiguous;
            dim at most 16,384.
        state: ``[rows]`` float32, contiguous, zeros before the first step.
        uses: :class:`RowUse` or ``(indices, grad, offsets or None, mode)``; none changes
            nothing; on CUDA at most 32.
        lr, eps: learning rate; added to the root.

    Raises:
        ValueError: a shape, device, layout or index is not as above, or ``lr`` is negative or not
            finite. On CUDA a bad index, or one that bad offsets give to no bag, is left out and
            :func:`pylum.check` raises.
        TypeError: a dtype is not as above.
    """
    _check_rate(lr)
    with torch.no_grad():
        _adagrad(table, state, *_lists(uses), lr, eps)


def row_wise_adamw_(
    table: torch.Tensor,
    moment: torch.Tensor,
    state: torch.Tensor,
    uses: Sequence[RowUse | tuple],
    *,
    lr: float,
    step: int,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """AdamW with one second moment per row (arXiv 2402.17152), in place, on the rows used.

    Lazy: a row without a use keeps its value and both moments and is not decayed. ``g`` is merged
    over the uses as in :func:`row_wise_adagrad_`. With t = ``step``::

        moment[row] = beta1 * moment[row] + (1 - beta1) * g
        state[row]  = beta2 * state[row] + (1 - beta2) * mean(g ** 2)
        table[row] *= 1 - lr * weight_decay
        table[row] -= lr * moment[row] / (1 - beta1 ** t)
                      / (sqrt(state[row] / (1 - beta2 ** t)) + eps)

    Args:
        table: ``[rows, dim]`` float32, bfloat16 or, on CUDA, float16, last dimension contiguous;
            dim at most 16,384.
        moment: ``[rows, dim]`` float32, last dimension contiguous, zeros before the first step.
        state: ``[rows]`` float32, contiguous, zeros before the first step.
        uses: :class:`RowUse` or ``(indices, grad, offsets or None, mode)``; none changes
            nothing; on CUDA at most 32.
        step: number of this step, from 1, for the bias correction.
        betas: decay of the two moments, beta1 and beta2.

    Raises:
        ValueError: a shape, device, layout or index is not as above, or ``lr`` is negative or not
            finite. On CUDA a bad index, or one that bad offsets give to no bag, is left out and
            :func:`pylum.check` raises.
        TypeError: a dtype is not as above.
    """
    if isinstance(step, int) and step < 1:
        raise ValueError(f"step must be at least 1, got {step}")
    _check_rate(lr)
    with torch.no_grad():
        _adamw(table, moment, state, *_lists(uses), lr, *betas, eps, weight_decay, step)


def _check_rate(lr):
    if isinstance(lr, (int, float)) and not 0 <= lr < math.inf:
        raise ValueError(f"lr must be finite and at least 0, got {lr}")


def _lists(uses):
    uses = [RowUse(*use) for use in uses]
    for u, use in enumerate(uses):
        if use.mode not in ("sum", "mean"):
            raise ValueError(f"uses[{u}] mode must be 'sum' or 'mean', got {use.mode!r}")
    return (
        [use.indices for use in uses],
        [use.grad for use in uses],
        [use.offsets for use in uses],
        [use.mode == "mean" for use in uses],
    )


def _workspace(table, indices):
    words, pieces = _C.row_wise_workspace(table, sum(len(index) for index in indices))
    return (
        table.new_empty(words, dtype=torch.int64),
        table.new_empty((pieces, table.shape[1]), dtype=torch.float32),
    )


def _run_sums(grad, indices, offsets, mean, rows, dtype):
    if grad.stride(-1) != 1:
        grad = grad.contiguous()
    out = grad.new_zeros((rows, grad.shape[1]), dtype=dtype)
    workspace = _workspace(out, [indices])
    _C.row_wise_sums(out, [indices], [grad], [offsets], [mean], *workspace, run_on(out))
    return out


def _sums_fake(grad, indices, offsets, mean, rows, dtype):
    return grad.new_empty((rows, grad.shape[1]), dtype=dtype)


def _run_adagrad(table, state, indices, grads, offsets, means, lr, eps):
    workspace = _workspace(table, indices)
    _C.row_wise_adagrad(
        table, state, indices, grads, offsets, means, lr, eps, *workspace, run_on(table)
    )


def _run_adamw(table, moment, state, indices, grads, offsets, means, *numbers):
    workspace = _workspace(table, indices)
    _C.row_wise_adamw(
        table, moment, state, indices, grads, offsets, means, *numbers, *workspace, run_on(table)
    )


def _nothing(*_args):
    return None


# The dense gradient of a table from one use; private: the backward of the embedding ops.
table_gradient = register(
    "table_gradient(Tensor grad, Tensor indices, Tensor? offsets, bool mean, SymInt rows, "
    "ScalarType dtype) -> Tensor",
    cpu=_run_sums,
    cuda=_run_sums,
    fake=_sums_fake,
)
_USES = "Tensor[] indices, Tensor[] grads, Tensor?[] offsets, bool[] means"
_adagrad = register(
    f"row_wise_adagrad_(Tensor(a!) table, Tensor(b!) state, {_USES}, float lr, float eps) -> ()",
    cpu=_run_adagrad,
    cuda=_run_adagrad,
    fake=_nothing,
)
_adamw = register(
    f"row_wise_adamw_(Tensor(a!) table, Tensor(b!) moment, Tensor(c!) state, {_USES}, float lr, "
    "float beta1, float beta2, float eps, float weight_decay, SymInt step) -> ()",
    cpu=_run_adamw,
    cuda=_run_adamw,
    fake=_nothing,
)
