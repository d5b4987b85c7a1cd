"""From a CLIP embedding to a sparse token of SAM: a small learned projection, and its file.

Segment Anything, section 7.5 and appendix D.5: a text prompt is one token made of CLIP's embedding. The published SAM
weights hold no such layer, so it is learned here, with SAM left as it is.

Shape legend: N prompts, D dimensions of CLIP's embedding, C = 256 channels of SAM's tokens.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from hqsam.checkpoints.reading import read_file
from hqsam.checkpoints.writing import atomic_path
from hqsam.errors import CheckpointError

FORMAT = "hqsam-text-projection"
FORMAT_VERSION = "1"


class TextProjection(nn.Module):
    """CLIP embeddings (N, D) to sparse tokens (N, C), by one linear layer or two with a GELU between them.

    The input is brought to length sqrt(D), so that its numbers are of order one: CLIP compares directions, and its
    image and text embeddings differ in length.

    Args:
        clip_dim: D.
        dim: C.
        hidden_dim: width between two layers; None for a single layer.
    """

    def __init__(self, clip_dim: int, dim: int = 256, *, hidden_dim: int | None = None) -> None:
        super().__init__()
        self.clip_dim = clip_dim
        self.dim = dim
        self.hidden_dim = hidden_dim
        widths = [clip_dim, dim] if hidden_dim is None else [clip_dim, hidden_dim, dim]
        layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
        if hidden_dim is not None:
            layers += [nn.GELU(), nn.Linear(widths[1], widths[2])]
        self.layers = nn.Sequential(*layers)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(N, D), of any length, not zero -> (N, C).

        Raises:
            ValueError: another shape.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.clip_dim:
            raise ValueError(f"CLIP embeddings must have shape (N, {self.clip_dim}), got {tuple(embeddings.shape)}")
        scaled = F.normalize(embeddings.to(next(self.parameters()).dtype), dim=1) * self.clip_dim**0.5
        tokens: Tensor = self.layers(scaled)
        return tokens


@dataclass(frozen=True, kw_only=True)
class ProjectionInfo:
    """What a projection belongs to: with another CLIP or another SAM it gives tokens without meaning.

    Attributes:
        clip: name that `load_clip` takes, e.g. "ViT-L-14-336-quickgelu/openai".
        sam: registry name of the SAM that it was trained with, e.g. "hq_vit_l".
        template: what a phrase is put into before CLIP reads it; "{}" is the phrase.
    """

    clip: str
    sam: str
    template: str = "{}"

    def require_sam(self, name: str) -> None:
        """Check that a model has the same SAM; HQ head and tag may differ.

        Raises:
            CheckpointError: another one.
        """
        if _encoder(name) != _encoder(self.sam):
            raise CheckpointError(f"this text projection was trained with {self.sam!r}, the model is {name!r}")


def save_projection(projection: TextProjection, path: str | PathLike[str], info: ProjectionInfo) -> None:
    """Write a projection as `.safetensors`, complete or not at all.

    Raises:
        CheckpointError: another suffix, or an empty name in `info`.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"a text projection ends with .safetensors, got {path.name!r}")
    if not (info.clip and info.sam and "{}" in info.template):
        raise CheckpointError(f"a text projection names its CLIP and SAM, and its template holds {{}}; got {info}")
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in projection.state_dict().items()}
    metadata = {"format": FORMAT, "format_version": FORMAT_VERSION, "clip_dim": str(projection.clip_dim)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {**metadata, **asdict(info)})


def load_projection(path: str | PathLike[str]) -> tuple[TextProjection, ProjectionInfo]:
    """Read a projection, on the CPU, float32, in eval mode.

    Raises:
        CheckpointError: not a projection, of a later format, damaged, or tensors that do not fit its description.
    """
    file = read_file(path)
    metadata = file.metadata
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a text projection (its metadata has no format={FORMAT!r})")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {metadata.get('format_version')!r}, this version reads {FORMAT_VERSION!r}"
        )
    lacking = sorted({"clip", "sam", "template", "clip_dim"} - set(metadata))
    if lacking:
        raise CheckpointError(f"{path} is not complete: its metadata lacks {', '.join(lacking)}")
    weights = {name: tensor for name, tensor in file.tensors.items() if name.endswith("weight")}
    first, last = weights.get("layers.0.weight"), weights.get("layers.2.weight")
    outer = first if last is None else last
    if first is None or outer is None or first.ndim != 2 or outer.ndim != 2:
        raise CheckpointError(f"{path} is not complete: no tensor 'layers.0.weight', but {sorted(file.tensors)}")
    projection = TextProjection(first.shape[1], outer.shape[0], hidden_dim=None if last is None else first.shape[0])
    expected = {name: tuple(tensor.shape) for name, tensor in projection.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    if expected != found or metadata["clip_dim"] != str(projection.clip_dim):
        raise CheckpointError(
            f"{path} does not fit together: expected {expected} for clip_dim {metadata['clip_dim']}, got {found}"
        )
    projection.load_state_dict(file.tensors)
    info = ProjectionInfo(clip=metadata["clip"], sam=metadata["sam"], template=metadata["template"])
    return projection.eval().requires_grad_(False), info


def _encoder(name: str) -> str:
    """`hq_vit_l.tag` -> `vit_l`."""
    return name.partition(".")[0].removeprefix("hq_").removeprefix("sam_")
