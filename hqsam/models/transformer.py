"""SAM's two-way transformer (Segment Anything, appendix A, "Lightweight mask decoder").

Shape legend: B images, N prompts over all images, T tokens per prompt, P = h * w image positions, C channels.

Until the first image-to-token attention the image tokens are the same for every prompt of an image, so they keep B rows
and are assigned to prompts by `image_index`; afterwards they have N rows.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from hqsam.models.layers import MLP


class Attention(nn.Module):
    """Multi-head attention with its inner width reduced by `downsample`."""

    def __init__(self, dim: int, num_heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        if inner % num_heads:
            raise ValueError(f"attention width {inner} must be divisible by its {num_heads} heads")
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

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
    ) -> tuple[Tensor, Tensor]:
        """One two-way block.

        Args:
            tokens: (N, T, C).
            image: (N, P, C), or (B, P, C) while still shared; then `image_index` assigns rows.
            token_pe: (N, T, C), the initial tokens, re-added at every attention.
            image_pe: (1, P, C).
            keep: (N, T) bool, False for batch padding; None when there is none.
            image_index: (N,) row of `image` for each prompt; None when the rows already match, or there is one.

        Returns:
            tokens (N, T, C) and image (N, P, C).
        """
        if self.first:  # at the first layer the tokens are their own positions, and SAM adds no residual
            tokens = self.self_attn(tokens, tokens, tokens, keep)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens, keep)
        tokens = self.norm1(tokens)

        positioned = image + image_pe
        to_image = self.token_to_image
        k, v = _rows(to_image.k_proj(positioned), image_index), _rows(to_image.v_proj(image), image_index)
        tokens = self.norm2(tokens + to_image.attend(to_image.q_proj(tokens + token_pe), k, v))
        tokens = self.norm3(tokens + self.mlp(tokens))

        to_token = self.image_to_token
        q = _rows(to_token.q_proj(positioned), image_index)
        update = to_token.attend(q, to_token.k_proj(tokens + token_pe), to_token.v_proj(tokens), keep)
        return tokens, self.norm4(_rows(image, image_index) + update)


class TwoWayTransformer(nn.Module):
    """Two two-way blocks and a final attention from tokens to image."""

    def __init__(self, dim: int = 256, num_heads: int = 8, mlp_dim: int = 2048, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(dim, num_heads, mlp_dim, first=i == 0) for i in range(depth))
        self.final_token_to_image = Attention(dim, num_heads, downsample=2)
        self.final_norm = nn.LayerNorm(dim)

    def forward(
        self,
        tokens: Tensor,
        image: Tensor,
        image_pe: Tensor,
        *,
        keep: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Let N sets of tokens and their images read each other.

        Args:
            tokens: (N, T, C).
            image: (N, P, C), or (B, P, C) with `image_index`, or (1, P, C).
            image_pe: (1, P, C).
            keep: (N, T) bool, False for batch padding.
            image_index: (N,) int64 or None.

        Returns:
            tokens (N, T, C) and image (N, P, C) after the transformer.
        """
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe, keep=keep, image_index=image_index)
            image_index = None
        read = self.final_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.final_norm(tokens + read), image


def _rows(x: Tensor, image_index: Tensor | None) -> Tensor:
    return x if image_index is None else x.index_select(0, image_index)
