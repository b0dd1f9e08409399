"""Reference of :func:`pylum.ops.dot_interaction`."""

import torch


def dot_interaction(vectors: torch.Tensor) -> torch.Tensor:
    """As :func:`pylum.ops.dot_interaction`, argument for argument."""
    exact = vectors.double()
    products = exact @ exact.transpose(1, 2)
    row, column = torch.tril_indices(vectors.shape[1], vectors.shape[1], -1)
    return products[:, row, column].to(vectors.dtype)
