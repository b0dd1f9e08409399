"""Registration of the kernels with ``torch.library``.

``pylum.ops.f`` -> ``torch.ops.pylum.f`` -> ``_C.f``. ``Library.define`` and ``impl`` cost 1.7 us a
call where ``torch.library.custom_op`` costs 11 to 17.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

LIBRARY = torch.library.Library("pylum", "DEF")

# Work that goes to torch by a rule of the module's, never by counts: module -> what and when.
# pylum.show_config() lists it.
TORCH_PATHS: dict[str, str] = {}


def threads() -> int:
    """Threads a CPU kernel may use: torch's setting."""
    return torch.get_num_threads()


class RunOn(NamedTuple):
    """How ``_C`` runs an op: threads of a CPU kernel; stream and error word of a CUDA one."""

    threads: int
    stream: int
    errors: int


def run_on(x: torch.Tensor) -> RunOn:
    """Torch's threads where ``x`` is on a CPU, its current stream where ``x`` is on a GPU."""
    if x.device.type != "cuda":
        return RunOn(torch.get_num_threads(), 0, 0)
    index = x.device.index
    return RunOn(1, torch._C._cuda_getCurrentRawStream(index), _error_word(index).data_ptr())


_ERROR_WORDS: dict[int, torch.Tensor] = {}
# The bits of csrc/common/execution.h.
_ERRORS = {
    1: "positions past the rows of cos and sin",
    2: "offsets that decrease or do not end at the number of rows",
    4: "indices past the rows of their table",
    8: "pages past their pool",
    16: "a mask that contradicts the lengths of its batch",
    32: "thresholds of a bias that decrease or are negative",
    64: "weights that are negative or not finite",
}


def _error_word(index: int) -> torch.Tensor:
    if index not in _ERROR_WORDS:
        _ERROR_WORDS[index] = torch.zeros(1, dtype=torch.int32, device=f"cuda:{index}")
    return _ERROR_WORDS[index]


def describe_errors(word: int) -> str:
    """What the bits of an error word stand for."""
    return ", ".join(text for bit, text in _ERRORS.items() if word & bit)


def check() -> None:
    """Raise for values that CUDA kernels met since the last check and could not raise for.

    Kernels run behind the caller's back and never wait for him: a bad index gives rows of NaN, a
    bad update is skipped, and both are noted on the device. This waits for the devices' work.

    Raises:
        ValueError: a kernel met such values.
    """
    for index, word in _ERROR_WORDS.items():
        found = int(word.item())
        if found:
            word.zero_()
            raise ValueError(f"kernels on cuda:{index} met {describe_errors(found)}")


def autocast_dtype(**tensors: torch.Tensor | None) -> torch.dtype | None:
    """What autocast computes in where the named tensors are; None where it is off.

    Raises:
        TypeError: one of them is no tensor.
    """
    for name, tensor in tensors.items():
        if tensor is not None and not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    device = next(t for t in tensors.values() if t is not None).device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def register(
    schema: str,
    *,
    cpu: Callable[..., Any],
    cuda: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Define ``pylum::<schema>`` and return the callable ``torch.ops.pylum.<name>``.

    Args:
        schema: torch schema without the namespace, e.g. ``"topk(Tensor queries, ...) -> Tensor"``.
        cpu: allocates the outputs and calls ``_C``.
        cuda: the same for CUDA tensors, often the same function.
        fake: shapes and dtypes of the outputs from those of the inputs.
        backward, setup_context: as for ``torch.library.register_autograd``; without them the op
            has no gradient. Double backward is an error.
    """
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, cpu, "CPU")
    LIBRARY.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"pylum::{name}", fake, lib=LIBRARY)
    op = getattr(torch.ops.pylum, name)
    if op.default._schema.is_mutable:
        LIBRARY.impl(name, _mutating(op.default), "ADInplaceOrView", with_keyset=True)
    if backward is not None and setup_context is not None:
        if "[]" in schema:
            torch.library.register_autograd(
                f"pylum::{name}", _once(name, backward), setup_context=setup_context, lib=LIBRARY
            )
        else:
            implementation = _autograd(op.default, _once(name, backward), setup_context)
            LIBRARY.impl(name, implementation, "Autograd", with_keyset=True)
            return op
    return _primal(name, op)


def _autograd(
    op: Any, backward: Callable[..., Any], setup_context: Callable[..., Any]
) -> Callable[..., Any]:
    # torch.library.register_autograd does the same for any schema, and at each call reads all of
    # the schema's arguments once for each of them: 0.1 ms for the 19 of attention.
    below = torch._C._after_autograd_keyset

    def run(keyset: Any, args: tuple[Any, ...]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & below, *args)

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            result = run(args[-1], args[:-1])
            setup_context(ctx, args[:-1], result)
            return result

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            wanted = ctx.needs_input_grad
            ctx.needs_input_grad = wanted[:-1]
            gradients = backward(ctx, *grads)
            ctx.needs_input_grad = wanted
            return *(gradients if isinstance(gradients, tuple) else (gradients,)), None

    def autograd(keyset: Any, *args: Any) -> Any:
        if forward_ad._current_level >= 0:
            _refuse_duals(op.__name__.partition(".")[0], args)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return Recorded.apply(*args, keyset)
        return run(keyset, args)

    return autograd


def _primal(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
    def primal(*args: Any) -> Any:
        if forward_ad._current_level >= 0:
            _refuse_duals(name, args)
        return op(*args)

    return primal


def _refuse_duals(name: str, args: tuple[Any, ...]) -> None:
    # Without a rule of its own torch would take the derivative for zero.
    tensors = [t for a in args for t in (a if isinstance(a, (list, tuple)) else (a,))]
    if any(
        isinstance(t, torch.Tensor) and forward_ad.unpack_dual(t).tangent is not None
        for t in tensors
    ):
        raise NotImplementedError(
            f"pylum.ops.{name} has no forward-mode derivative: differentiate it by backward"
        )


def _mutating(op: Any) -> Callable[..., Any]:
    # Autograd then refuses a backward that would read what the op has overwritten.
    arguments = op._schema.arguments
    written = [i for i, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write]
    below = torch._C._after_ADInplaceOrView_keyset

    def mutate(keyset: Any, *args: Any) -> Any:
        torch.autograd.graph.increment_version([args[i] for i in written])
        return op.redispatch(keyset & below, *args)

    return mutate


def _once(name: str, backward: Callable[..., Any]) -> Callable[..., Any]:
    # Grad mode is on inside a backward with create_graph=True only. A saved gradient would stand in
    # its graph as a constant, and whatever is differentiated through it would be wrong.
    def once(*args: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"pylum.ops.{name} has no double backward: call backward without create_graph"
            )
        return backward(*args)

    return once
