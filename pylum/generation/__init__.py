"""Asking a model: :func:`generate` and what it gives back; :func:`score`."""

from pylum.generation.request import generate, generate_batches
from pylum.generation.result import Generation
from pylum.generation.score import score
from pylum.model import UserModel

# The model does not know who asks it; those who ask it attach themselves.
setattr(UserModel, "generate", generate)  # noqa: B010

__all__ = ["Generation", "generate", "generate_batches", "score"]
