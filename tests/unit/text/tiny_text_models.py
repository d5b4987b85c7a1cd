"""Detectors and CLIPs with random weights, small enough to be built and saved for each test run; nothing is downloaded.

Every letter is a token, so that any phrase can be read.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch

LETTERS = string.ascii_lowercase
DETECTOR_KINDS = ["grounding-dino", "owlvit", "owlv2"]


def build_detector_folder(folder: Path, kind: str, seed: int = 0) -> Path:
    """A folder as `save_pretrained` writes it, with a model and its processor."""
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, processor = _grounding(transformers) if kind == "grounding-dino" else _owl(transformers, kind)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _grounding(transformers: Any) -> tuple[Any, Any]:
    # the model knows [CLS], [SEP], "." and "?" by these numbers
    vocabulary = {f"[unused{number}]": number for number in range(1100)}
    special = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
    letters = {letter: 1040 + index for index, letter in enumerate(LETTERS)}
    pieces = {f"##{letter}": 1070 + index for index, letter in enumerate(LETTERS)}
    taken = {**special, **letters, **pieces}
    vocabulary = {k: v for k, v in vocabulary.items() if v not in taken.values()} | taken
    tokenizer = transformers.BertTokenizer(vocab=vocabulary, model_max_length=64)
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(
            image_size=64,
            patch_size=4,
            embed_dim=16,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=transformers.BertConfig(
            vocab_size=1100,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        ),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=12,
        num_feature_levels=3,
        encoder_n_points=2,
        decoder_n_points=2,
        max_text_len=48,
    )
    images = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    model = transformers.GroundingDinoForObjectDetection(config)
    return model, transformers.GroundingDinoProcessor(images, tokenizer)


def _owl(transformers: Any, kind: str) -> tuple[Any, Any]:
    prefix = {"owlvit": "OwlViT", "owlv2": "Owlv2"}[kind]
    # a query whose first token is 0 is filler to the model, so 0 is the padding and not the start
    tokens = ["!", "<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    tokenizer = transformers.CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=[], model_max_length=16, pad_token="!"
    )
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{prefix}Config")(
        text_config={**layers, **special, "vocab_size": len(tokens), "max_position_embeddings": 16},
        vision_config={**layers, "image_size": 64, "patch_size": 16},
        projection_dim=16,
    )
    images = getattr(transformers, f"{prefix}ImageProcessor")(size={"height": 64, "width": 64})
    model = getattr(transformers, f"{prefix}ForObjectDetection")(config)
    with torch.no_grad():  # as they are drawn, the boxes have no width
        model.box_head.dense2.weight *= 0.02
    return model, getattr(transformers, f"{prefix}Processor")(images, tokenizer)


def build_clip_folder(folder: Path, seed: int = 0, embed_dim: int = 24) -> str:
    """An open_clip folder with random weights; returns the name that `load_clip` takes."""
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    config = {
        "embed_dim": embed_dim,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}), "utf-8")
    return f"local-dir:{folder}"
