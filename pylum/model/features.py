"""Typed features of tokens: one embedding per field, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from pylum import ops
from pylum.data.schema import Field
from pylum.ops._library import TORCH_PATHS
from pylum.ragged import Ragged

TORCH_PATHS[__name__] = "weights of numeric features"

Column = torch.Tensor | Ragged


class Features(nn.Module):
    """Embeds fields of any kind and lays them side by side.

    A category is a row of a table; categories are the mean of their rows, zeros where there are
    none; a number is standardised and scales a trained direction; a vector is projected. A missing
    number or vector (NaN) is a trained vector of its own.

    Args:
        fields: what there is.
        rows: size of the vocabulary of each field that has one.
        dim: width of each field's embedding.
        missing_row: of a category without a column: ``ANY_ROW`` or ``OOV_ROW``.
        scale: deviation of the initial embeddings.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        rows: Mapping[str, int],
        dim: int,
        missing_row: int,
        scale: float,
    ) -> None:
        super().__init__()
        self.fields = tuple(fields)
        self.dim, self.missing_row = dim, missing_row
        self.tables = nn.ParameterDict()
        self.weights = nn.ParameterDict()
        self.biases = nn.ParameterDict()
        self.missing = nn.ParameterDict()
        for f in self.fields:
            if f.kind in ("category", "categories"):
                self.tables[f.name] = normal(rows[f.name], dim, scale=scale)
                continue
            width = f.dim if f.kind == "vector" else 1
            self.weights[f.name] = normal(width, dim, scale=scale * width**-0.5)
            self.biases[f.name] = nn.Parameter(torch.zeros(dim))
            self.missing[f.name] = normal(dim, scale=scale)
            if f.kind == "number":
                self.register_buffer(f"mean_{f.name}", torch.zeros(()))
                self.register_buffer(f"scale_{f.name}", torch.ones(()))

    @property
    def width(self) -> int:
        """Width of the result."""
        return len(self.fields) * self.dim

    def standardise(self, columns: Mapping[str, Column]) -> None:
        """Take the mean and the deviation of every number from ``columns``; NaN is left out."""
        for f in self.fields:
            if f.kind != "number" or f.name not in columns:
                continue
            column = columns[f.name]
            assert isinstance(column, torch.Tensor)
            known = column[~column.isnan()].double()
            if known.numel():
                deviation = known.std(unbiased=False)
                getattr(self, f"mean_{f.name}").copy_(known.mean())
                getattr(self, f"scale_{f.name}").copy_(1 / deviation if deviation > 0 else 1.0)

    def forward(self, columns: Mapping[str, Column], count: int) -> list[torch.Tensor]:
        """``[count, dim]`` for each field, in order.

        Args:
            columns: by field name; a field without a column is missing in every row.
            count: number of rows.
        """
        return [self._one(f, columns.get(f.name), count) for f in self.fields]

    def _one(self, f: Field, column: Column | None, count: int) -> torch.Tensor:
        if f.kind == "category":
            table = self.tables[f.name]
            if column is None:
                return table[self.missing_row].expand(count, -1)
            assert isinstance(column, torch.Tensor)
            return nn.functional.embedding(column, table)
        if f.kind == "categories":
            assert isinstance(column, Ragged)
            return ops.embedding_bag(
                [self.tables[f.name]], [column.values], [column.offsets], mode="mean"
            )
        missing = self.missing[f.name]
        if column is None:
            return missing.expand(count, -1)
        assert isinstance(column, torch.Tensor)
        values = column if f.kind == "vector" else column[:, None]
        if f.kind == "number":
            values = (values - getattr(self, f"mean_{f.name}")) * getattr(self, f"scale_{f.name}")
        unknown = values[:, :1].isnan()
        # NaN times zero is NaN: the gradient of the weight must not see it.
        values = values.masked_fill(unknown, 0.0).to(self.weights[f.name].dtype)
        known = torch.addmm(self.biases[f.name], values, self.weights[f.name])
        return torch.where(unknown, missing, known)


def normal(*shape: int, scale: float) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * scale)
