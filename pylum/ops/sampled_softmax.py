"""Softmax cross-entropy of target items against sampled, in-batch or all items (InfoNCE)."""

from __future__ import annotations

import math

import torch

from pylum import _C
from pylum.ops._library import autocast_dtype, register, run_on

_REDUCTIONS = ("mean", "sum", "none")


def sampled_softmax(
    queries: torch.Tensor,
    items: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float,
    negatives: torch.Tensor | None = None,
    item_ids: torch.Tensor | None = None,
    log_q: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """``-log softmax`` of each query's target among its candidate items.

    The logit of query n and item j is ``<queries[n], items[j]> / temperature - log_q[j]``, also for
    the target: ``log_q`` is the logarithm of the probability with which an item is sampled (Yi et
    al., Sampling-Bias-Corrected Neural Modeling, RecSys 2019). The target counts exactly once: a
    candidate that is the target's row, or has the target's id in ``item_ids``, is left out. Any
    other candidate counts as often as it is given. With in-batch negatives the items are those of
    the batch, with a full softmax those of the catalogue; ``negatives`` is None for both.

    The logits are never held whole: memory is O((queries + items) * dim) and, on a CPU, a strip of
    exponentials, or one float for each of ``[N, R]`` negatives. With a reduction the gradients are
    formed with the loss and ``backward`` only scales them; with "none", ``backward`` computes them.
    Gradients flow to ``queries`` and ``items`` only, once: double backward is an error. Results do
    not depend on the number of threads. A query whose weight, or whose incoming gradient, is 0
    adds nothing to a gradient, even where its loss is NaN.

    Args:
        queries: ``[N, dim]`` float32, bfloat16 or, on CUDA, float16, last dimension contiguous;
            on CUDA dim is at most 256.
        items: ``[M, dim]``, dtype of ``queries``, last dimension contiguous. Under autocast, where
            the dtypes differ, both are taken as float32.
        targets: ``[N]`` int64, rows of ``items``.
        temperature: positive number, not a tensor with a gradient.
        negatives: int64 rows of ``items``: ``[R]`` shared by all queries or ``[N, R]``; None: every
            row of ``items``.
        item_ids: ``[M]`` int64; None: every row is an item of its own.
        log_q: ``[M]`` float32.
        weights: ``[N]`` float32, at least 0. The mean is the weighted mean.
        reduction: "mean", "sum" or "none".

    Returns:
        The loss, float32: a scalar, or ``[N]`` (times ``weights``) with reduction "none". A mean
        over no queries, or over weights that are all 0, is 0.

    Raises:
        ValueError: a shape, device, layout, row, weight or option is not as above. On CUDA a query
            with a bad target, weight or row among its own negatives has NaN loss and gradient and
            adds nothing to that of ``items``, a bad shared negative makes every loss NaN, and
            :func:`pylum.check` raises.
        TypeError: a dtype or the temperature is not as above.
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
    if isinstance(temperature, torch.Tensor):
        if temperature.requires_grad:
            raise TypeError(
                "temperature must be a number: there is no gradient for it, "
                "got a tensor that requires grad"
            )
        temperature = temperature.item()
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    for name, tensor in (("log_q", log_q), ("weights", weights)):
        if tensor is not None and tensor.requires_grad:
            raise ValueError(f"{name} must not require grad: there is no gradient for it")
    autocast = autocast_dtype(queries=queries, items=items, targets=targets)
    if queries.dtype != items.dtype and autocast is not None:
        queries, items = queries.float(), items.float()
    grad = torch.is_grad_enabled() and reduction != "none"
    loss, _, _ = _op(
        queries,
        items,
        targets,
        negatives,
        item_ids,
        log_q,
        weights,
        float(temperature),
        reduction,
        grad and queries.requires_grad,
        grad and items.requires_grad,
    )
    return loss


def _run(
    queries,
    items,
    targets,
    negatives,
    item_ids,
    log_q,
    weights,
    temperature,
    reduction,
    queries_grad,
    items_grad,
):
    losses = queries.new_empty(queries.shape[:1], dtype=torch.float32)
    scales = torch.empty_like(losses)
    inputs = _dense(queries, items, targets, negatives, item_ids, log_q, temperature, scales)
    workspace = _workspace(inputs, queries_grad, items_grad)
    _C.sampled_softmax_scales(_contiguous(weights), reduction == "mean", scales, run_on(queries))
    d_queries, d_items = _forward(inputs, losses, workspace, queries_grad, items_grad)
    loss = losses if reduction == "none" else losses.new_empty(())
    _C.sampled_softmax_reduce(losses, scales, loss, run_on(queries))
    return loss, d_queries, d_items


def _contiguous(tensor):
    return None if tensor is None else tensor.contiguous()


def _dense(queries, items, targets, negatives, item_ids, log_q, temperature, scales):
    vectors = map(_contiguous, (targets, negatives, item_ids, log_q))
    return (queries, items, *vectors, temperature, scales)


def _workspace(inputs, queries_grad, items_grad):
    # Shapes, dtypes and devices are checked here, before anything is computed.
    size = _C.sampled_softmax_workspace(*inputs, queries_grad, items_grad, run_on(inputs[0]))
    return inputs[0].new_empty(size, dtype=torch.float32)


def _forward(inputs, losses, workspace, queries_grad, items_grad):
    queries, items, *_ = inputs
    d_queries, d_items = _gradients(queries, items, queries_grad, items_grad)
    _C.sampled_softmax_forward(
        *inputs,
        losses,
        d_queries if queries_grad else None,
        d_items if items_grad else None,
        workspace,
        run_on(queries),
    )
    return d_queries, d_items


def _gradients(queries, items, queries_grad, items_grad):
    return (
        queries.new_empty(queries.shape if queries_grad else (0,)),
        items.new_empty(items.shape if items_grad else (0,)),
    )


def _fake(
    queries,
    items,
    targets,
    negatives,
    item_ids,
    log_q,
    weights,
    temperature,
    reduction,
    queries_grad,
    items_grad,
):
    shape = queries.shape[:1] if reduction == "none" else ()
    loss = queries.new_empty(shape, dtype=torch.float32)
    return loss, *_gradients(queries, items, queries_grad, items_grad)


def _setup_context(ctx, inputs, output):
    *tensors, temperature, reduction, queries_grad, items_grad = inputs
    ctx.temperature, ctx.reduction = temperature, reduction
    ctx.formed = queries_grad, items_grad
    ctx.save_for_backward(*(tensors if reduction == "none" else output[1:]))


def _backward(ctx, d_loss, _d_queries, _d_items):
    wanted = ctx.needs_input_grad[:2]
    if ctx.reduction == "none":
        queries, items, targets, negatives, item_ids, log_q, weights = ctx.saved_tensors
        scales = d_loss if weights is None else d_loss * weights
        formed = _backward_op(
            queries, items, targets, negatives, item_ids, log_q, scales, ctx.temperature, *wanted
        )
    else:
        formed = tuple(
            (d * d_loss).to(d.dtype) if there else None
            for d, there in zip(ctx.saved_tensors, ctx.formed, strict=True)
        )
    gradients = [d if want else None for d, want in zip(formed, wanted, strict=True)]
    return (*gradients, *[None] * 9)


def _run_backward(
    queries, items, targets, negatives, item_ids, log_q, scales, temperature, *wanted
):
    scales = scales.float().contiguous()
    inputs = _dense(queries, items, targets, negatives, item_ids, log_q, temperature, scales)
    return _forward(inputs, torch.empty_like(scales), _workspace(inputs, *wanted), *wanted)


def _backward_fake(
    queries, items, targets, negatives, item_ids, log_q, scales, temperature, *wanted
):
    return _gradients(queries, items, *wanted)


_ARGUMENTS = (
    "Tensor queries, Tensor items, Tensor targets, Tensor? negatives, Tensor? item_ids, "
    "Tensor? log_q, "
)
_op = register(
    f"sampled_softmax({_ARGUMENTS} Tensor? weights, float temperature, str reduction, "
    "bool queries_grad, bool items_grad) -> (Tensor, Tensor, Tensor)",
    cpu=_run,
    cuda=_run,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_backward_op = register(
    f"sampled_softmax_backward({_ARGUMENTS} Tensor scales, float temperature, bool queries_grad, "
    "bool items_grad) -> (Tensor, Tensor)",
    cpu=_run_backward,
    cuda=_run_backward,
    fake=_backward_fake,
)
