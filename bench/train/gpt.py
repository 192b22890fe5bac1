"""A small decoder-only transformer, as GPT-2 has it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

__all__ = ["Gpt", "Shape", "cross_entropy"]


class Shape(NamedTuple):
    """Sizes of a model.

    Attributes
    ----------
    vocabulary : int
        Number of symbols.
    context : int
        Symbols that it looks back at, at most.
    layers, heads, width : int
    """

    vocabulary: int
    context: int
    layers: int
    heads: int
    width: int


class Gpt(nn.Module):
    """Transformer with layer normalisation before each part, learned positions, GELU and no biases in its matrices.

    Parameters
    ----------
    shape : Shape
    seed : int
        Of the initial weights: those of GPT-2 (Radford et al., 2019), whose deviation shrinks with depth where a
        block adds to the residual stream; but symbols begin far apart, so that a short training gets somewhere.
    """

    def __init__(self, shape: Shape, seed: int) -> None:
        super().__init__()
        self.shape = shape
        self.symbols = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(_Block(shape.width, shape.heads) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name == "symbols.weight":
                nn.init.normal_(parameter, generator=generator)
            elif parameter.dim() > 1:
                deeper = (2 * shape.layers) ** -0.5 if name.endswith("out.weight") else 1
                nn.init.normal_(parameter, std=0.02 * deeper, generator=generator)

    @property
    def name(self) -> str:
        """Such as ``gpt-3x256``: layers and width."""
        return f"gpt-{self.shape.layers}x{self.shape.width}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of shape (batch, length, vocabulary) of what follows each symbol of `x`, int64 (batch, length)."""
        stream = self.symbols(x) + self.positions.weight[: x.shape[1]]
        for block in self.blocks:
            stream = block(stream)
        return self.head(self.norm(stream))


def cross_entropy(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean over all symbols of `y`, int64 (batch, length), in nats."""
    return functional.cross_entropy(scores.flatten(0, 1), y.flatten())


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        stream = stream + self._attend(self.attention_norm(stream))
        return stream + self.mlp_out(functional.gelu(self.mlp_in(self.mlp_norm(stream))))

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.attention_in(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.attention_out(seen.transpose(1, 2).reshape(batch, length, width))
