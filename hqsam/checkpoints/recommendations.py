"""What a weights file recommends to its users: entries in the string map of a `.safetensors` file.

`create_model` makes them the model's defaults. All are about the masks of the HQ head in the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from hqsam.errors import CheckpointError
from hqsam.models import Sam
from hqsam.types import (
    FUSIONS,
    REFINEMENTS,
    SCORE_SOURCES,
    UPSAMPLINGS,
    Fusion,
    Refine,
    ScoreSource,
    Upsampling,
    without_zoom,
)

Choice = TypeVar("Choice", bound=str)

RECOMMENDATIONS = (
    RECOMMENDED_FUSION := "recommended_fusion",
    RECOMMENDED_SCORE := "recommended_score",
    RECOMMENDED_REFINE := "recommended_refine",
    RECOMMENDED_HEED_CLICKS := "recommended_heed_clicks",
    RECOMMENDED_UPSAMPLING := "recommended_upsampling",
)
AS_EVER = ("sam", "none", "no", "bilinear")
"""Recommendations of what is done where nothing is recommended."""
_ANSWERS: tuple[Literal["yes", "no"], ...] = ("yes", "no")


def recommended_fusion(strings: Mapping[str, str], source: str) -> Fusion | None:
    """A recommended fusion, or None.

    Raises:
        CheckpointError: there is no such fusion.
    """
    return _one_of(strings, FUSIONS, RECOMMENDED_FUSION, source)


def recommended_score(strings: Mapping[str, str], source: str) -> ScoreSource | None:
    """A recommended score, or None.

    Raises:
        CheckpointError: there is no such score.
    """
    return _one_of(strings, SCORE_SOURCES, RECOMMENDED_SCORE, source)


def recommended_refine(strings: Mapping[str, str], source: str) -> Refine | None:
    """A recommended refinement, or None.

    Raises:
        CheckpointError: there is no such refinement.
    """
    return _one_of(strings, REFINEMENTS, RECOMMENDED_REFINE, source)


def recommended_heed_clicks(strings: Mapping[str, str], source: str) -> bool | None:
    """Whether clicks are recommended to be heeded, or None.

    Raises:
        CheckpointError: it is neither "yes" nor "no".
    """
    answer = _one_of(strings, _ANSWERS, RECOMMENDED_HEED_CLICKS, source)
    return None if answer is None else answer == "yes"


def recommended_upsampling(strings: Mapping[str, str], source: str) -> Upsampling | None:
    """A recommended upsampling, or None.

    Raises:
        CheckpointError: there is no such upsampling.
    """
    return _one_of(strings, UPSAMPLINGS, RECOMMENDED_UPSAMPLING, source)


def how_to_ask(model: Sam) -> dict[str, str]:
    """The recommendations that give a model's masks its defaults again, all but the fusion."""
    if not model.has_hq:
        return {}
    defaults = {
        RECOMMENDED_REFINE: model.default_refine,
        RECOMMENDED_HEED_CLICKS: "yes" if model.default_heed_clicks else "no",
        RECOMMENDED_UPSAMPLING: model.default_upsampling,
    }
    return {key: text for key, text in defaults.items() if text not in AS_EVER}


def check_recommendations(strings: Mapping[str, str], source: str) -> None:
    """Refuse to recommend what does not exist.

    Raises:
        CheckpointError: one of the recommendations is unknown, or two exclude each other.
    """
    recommended_fusion(strings, source)
    recommended_score(strings, source)
    recommended_upsampling(strings, source)
    refine, heeds = recommended_refine(strings, source), recommended_heed_clicks(strings, source)
    if heeds and refine is not None and without_zoom(refine) != refine:
        raise CheckpointError(
            f"{source}: clicks are not heeded with a zoom, of which {RECOMMENDED_REFINE}={refine} is one"
        )


def _one_of(strings: Mapping[str, str], legal: Sequence[Choice], key: str, source: str) -> Choice | None:
    if key not in strings:
        return None
    for choice in legal:
        if strings[key] == choice:
            return choice
    raise CheckpointError(f"{source}: {key} must be one of {', '.join(legal)}, got {strings[key]!r}")
