"""SAM's two-way transformer (Segment Anything, appendix A, "Lightweight mask decoder").

Shape legend: B images, N prompts over all images, T tokens per prompt, P = h * w image positions, C channels.

Until the first image-to-token attention the image tokens are the same for every prompt of an image, so they keep B rows
and are assigned to prompts by `image_index`; afterwards they have N rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hqsam.models.layers import MLP
from hqsam.models.linear import Linear, baddbmm, bmm


class ImageTokens(NamedTuple):
    """Images in front of the first block, and what it computes of them alone: the same for prompts without masks."""

    image: Tensor  # (B, P, C)
    positions: Tensor  # (1, P, C)
    keys: Tensor  # (B, P, C / 2) and values: what the tokens read
    values: Tensor  # (B, P, C / 2)
    queries: Tensor  # (B, P, C / 2), what the image reads tokens with

    def positions_map(self, grid_hw: tuple[int, int]) -> Tensor:
        """The positions as (1, C, h, w)."""
        spread: Tensor = self.positions.transpose(1, 2).unflatten(2, grid_hw)
        return spread


class Attention(nn.Module):
    """Multi-head attention with its inner width reduced by `downsample`."""

    def __init__(self, dim: int, num_heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        if inner % num_heads:
            raise ValueError(f"attention width {inner} must be divisible by its {num_heads} heads")
        self.num_heads = num_heads
        self._scale = (inner // num_heads) ** -0.5
        self.q_proj = Linear(dim, inner)
        self.k_proj = Linear(dim, inner)
        self.v_proj = Linear(dim, inner)
        self.out_proj = Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None) -> Tensor:
        """Attend row by row.

        Args:
            q: (N, Q, C), or one row for all.
            k: (N, L, C), or one row for all.
            v: (N, L, C), like `k`.
            keep: (N, L) bool, False where a key must be ignored.

        Returns:
            (N, Q, C).
        """
        return self.attend(self.q_proj(q), self.k_proj(k), self.v_proj(v), keep)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None) -> Tensor:
        """`forward` on projected queries, keys and values, so that a projection can be shared by many rows."""
        rows = max(q.shape[0], k.shape[0])
        q, k, v = (self._split_heads(t) for t in (q, k, v))
        mask = None if keep is None else keep[:, None, None, :]
        if k.shape[0] == 1 and rows > 1 and mask is None:
            # All rows read the same keys: their queries are one long list, and nothing is repeated.
            heads, length, width = q.shape[1:]
            merged = q.transpose(0, 1).reshape(1, heads, rows * length, width)
            out = F.scaled_dot_product_attention(merged, k, v)
            out = out.view(heads, rows, length, width).transpose(0, 1)
        else:
            q, k, v = (t.expand(rows, -1, -1, -1) for t in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        projected: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return projected

    def read(self, tokens: Tensor, keys: Tensor, image: Tensor) -> Tensor:
        """Attend from few tokens to the many positions of an image.

        The projections of keys and values are linear, so that they can be applied to the tokens' side: scores are
        products of the unprojected image with each head's queries, brought back to the width of the image, and values
        are projected after they were averaged. With 8 tokens that is half the arithmetic, and nothing of the image's
        size is made. Exact up to rounding.

        Args:
            tokens: (N, T, C).
            keys: (N, P, C), or one row for all.
            image: (N, P, C) values, like `keys`.

        Returns:
            (N, T, C).
        """
        if not self._is_short(tokens, keys):
            return self.attend(self.q_proj(tokens), self.k_proj(keys), self.v_proj(image))
        n, count, width = tokens.shape
        queries = self._by_head(self.q_proj, tokens) * self._scale
        key, value = (layer.weight.view(self.num_heads, -1, width) for layer in (self.k_proj, self.v_proj))
        wanted = (queries @ key).reshape(keys.shape[0], -1, width)
        shift = (queries @ self.k_proj.bias.view(self.num_heads, -1, 1)).reshape(keys.shape[0], -1, 1)
        scores = baddbmm(shift, wanted, keys.transpose(1, 2))
        mixed = bmm(scores.softmax(dim=-1), image).view(n, self.num_heads, count, width)
        out = (mixed @ value.transpose(1, 2)).transpose(1, 2).flatten(2)
        projected: Tensor = self.out_proj(out + self.v_proj.bias)
        return projected

    def write(self, image: Tensor, queries: Tensor, keys: Tensor, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Add to the many positions of an image what they read from few tokens; projections are moved as in `read`.

        Args:
            image: (N, P, C), or one row for all.
            queries: (N, P, C), like `image`.
            keys: (N, T, C).
            tokens: (N, T, C) values.
            keep: (N, T) bool, False where a token must be ignored.

        Returns:
            (N, P, C), the sum.
        """
        if not self._is_short(keys, keys):
            return image + self.attend(self.q_proj(queries), self.k_proj(keys), self.v_proj(tokens), keep)
        n, count, width = keys.shape
        heads = self.num_heads
        known = self._by_head(self.k_proj, keys) * self._scale
        wanted = (known @ self.q_proj.weight.view(heads, -1, width)).reshape(queries.shape[0], -1, width)
        shift = known @ self.q_proj.bias.view(heads, -1, 1)  # (N, heads, T, 1)
        if keep is not None:
            shift = shift.masked_fill(~keep[:, None, :, None], -torch.inf)
        scores = baddbmm(shift.reshape(queries.shape[0], -1, 1), wanted, queries.transpose(1, 2))
        return self._add_told(image, scores.view(n, heads, count, -1), tokens)

    def write_projected(
        self, image: Tensor, queries: Tensor, keys: Tensor, tokens: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """`write` with projected queries: (N, P, C / downsample), or one row for all."""
        if not self._is_short(keys, keys):
            return image + self.attend(queries, self.k_proj(keys), self.v_proj(tokens), keep)
        known, wanted = self._by_head(self.k_proj, keys) * self._scale, self._split_heads(queries)
        if len(wanted) == 1:  # nothing is repeated: the keys of all rows are one long list
            merged = known.transpose(0, 1).flatten(1, 2) @ wanted[0].transpose(1, 2)  # (heads, N * T, P)
            scores = merged.unflatten(1, (known.shape[0], known.shape[2])).transpose(0, 1)
        else:
            scores = known @ wanted.transpose(2, 3)
        if keep is not None:
            scores = scores.masked_fill(~keep[:, None, :, None], -torch.inf)
        return self._add_told(image, scores, tokens)

    def _add_told(self, image: Tensor, scores: Tensor, tokens: Tensor) -> Tensor:
        """Add the tokens' values by scores (N, heads, T, P) of each position."""
        shares = scores.softmax(dim=2).flatten(1, 2)  # (N, heads * T, P)
        told = self._by_head(self.v_proj, tokens)
        weight = self.out_proj.weight.t().view(self.num_heads, -1, tokens.shape[-1])
        values = (told @ weight).flatten(1, 2) + self.out_proj.bias / self.num_heads  # a head's shares add up to one
        return baddbmm(image, shares.transpose(1, 2), values)

    def _by_head(self, layer: nn.Module, tokens: Tensor) -> Tensor:
        return self._split_heads(layer(tokens))

    def _is_short(self, tokens: Tensor, others: Tensor) -> bool:
        """Whether moving projections to the tokens' side is less work than projecting the other side's rows."""
        if torch.compiler.is_compiling():  # a graph is for any number of tokens
            return True
        return tokens.shape[0] * tokens.shape[1] * self.num_heads <= others.shape[0] * self.q_proj.out_features

    def _split_heads(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        return x.view(n, length, self.num_heads, width // self.num_heads).transpose(1, 2)  # (N, heads, L, C / heads)


class TwoWayBlock(nn.Module):
    """Self-attention of tokens, tokens to image, MLP, image to tokens; each followed by a layer norm."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.token_to_image = Attention(dim, num_heads, downsample=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_dim, dim, 2)
        self.norm3 = nn.LayerNorm(dim)
        self.image_to_token = Attention(dim, num_heads, downsample=2)
        self.norm4 = nn.LayerNorm(dim)

    def forward(
        self,
        tokens: Tensor,
        image: Tensor,
        token_pe: Tensor,
        image_pe: Tensor,
        *,
        keep: Tensor | None,
        image_index: Tensor | None,
        known: ImageTokens | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One two-way block.

        Args:
            tokens: (N, T, C).
            image: (N, P, C), or (B, P, C) while still shared; then `image_index` assigns rows.
            token_pe: (N, T, C), the initial tokens, re-added at every attention.
            image_pe: (1, P, C).
            keep: (N, T) bool, False for batch padding; None when there is none.
            image_index: (N,) row of `image` for each prompt; None when the rows already match, or there is one.
            known: what `TwoWayTransformer.prepare` made of this image, for the first block.

        Returns:
            tokens (N, T, C) and image (N, P, C).
        """
        if self.first:  # at the first layer the tokens are their own positions, and SAM adds no residual
            tokens = self.self_attn(tokens, tokens, tokens, keep)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens, keep)
        tokens = self.norm1(tokens)

        to_image, to_token = self.token_to_image, self.image_to_token
        if known is not None:
            k, v = _rows(known.keys, image_index), _rows(known.values, image_index)
            read = to_image.attend(to_image.q_proj(tokens + token_pe), k, v)
            tokens = self._after_reading(tokens, read)
            image, queries = _rows(image, image_index), _rows(known.queries, image_index)
            return tokens, self.norm4(to_token.write_projected(image, queries, tokens + token_pe, tokens, keep))

        positioned = image + image_pe
        if image_index is None:
            read = to_image.read(tokens + token_pe, positioned, image)
        else:  # prompts of several images: keys and values are projected before they are repeated
            k, v = _rows(to_image.k_proj(positioned), image_index), _rows(to_image.v_proj(image), image_index)
            read = to_image.attend(to_image.q_proj(tokens + token_pe), k, v)
        tokens = self._after_reading(tokens, read)
        image, positioned = _rows(image, image_index), _rows(positioned, image_index)
        return tokens, self.norm4(to_token.write(image, positioned, tokens + token_pe, tokens, keep))

    def _after_reading(self, tokens: Tensor, read: Tensor) -> Tensor:
        tokens = self.norm2(tokens + read)
        changed: Tensor = self.norm3(tokens + self.mlp(tokens))
        return changed


class TwoWayTransformer(nn.Module):
    """Two two-way blocks and a final attention from tokens to image."""

    def __init__(self, dim: int = 256, num_heads: int = 8, mlp_dim: int = 2048, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(dim, num_heads, mlp_dim, first=i == 0) for i in range(depth))
        self.final_token_to_image = Attention(dim, num_heads, downsample=2)
        self.final_norm = nn.LayerNorm(dim)

    def prepare(self, image: Tensor, image_pe: Tensor) -> ImageTokens:
        """What the first block computes of images alone.

        Args:
            image: (B, P, C).
            image_pe: (1, P, C).
        """
        first = self.layers[0]
        assert isinstance(first, TwoWayBlock)  # noqa: S101  for the type checker
        positioned = image + image_pe
        read, write = first.token_to_image, first.image_to_token
        return ImageTokens(image, image_pe, read.k_proj(positioned), read.v_proj(image), write.q_proj(positioned))

    def forward(
        self,
        tokens: Tensor,
        image: Tensor,
        image_pe: Tensor,
        *,
        keep: Tensor | None = None,
        image_index: Tensor | None = None,
        known: ImageTokens | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Let N sets of tokens and their images read each other.

        Args:
            tokens: (N, T, C).
            image: (N, P, C), or (B, P, C) with `image_index`, or (1, P, C).
            image_pe: (1, P, C).
            keep: (N, T) bool, False for batch padding.
            image_index: (N,) int64 or None.
            known: from `prepare` for this image.

        Returns:
            tokens (N, T, C) and image (N, P, C) after the transformer.
        """
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe, keep=keep, image_index=image_index, known=known)
            image_index = known = None
        read = self.final_token_to_image.read(tokens + token_pe, image + image_pe, image)
        return self.final_norm(tokens + read), image


def _rows(x: Tensor, image_index: Tensor | None) -> Tensor:
    return x if image_index is None else x.index_select(0, image_index)
