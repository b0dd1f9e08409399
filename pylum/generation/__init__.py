"""Asking a model: :func:`generate` and what it gives back."""

from pylum.generation.request import generate, generate_batches
from pylum.generation.result import Generation
from pylum.model import LUM

# The model does not know who asks it; those who ask it attach themselves.
setattr(LUM, "generate", generate)  # noqa: B010

__all__ = ["Generation", "generate", "generate_batches"]
