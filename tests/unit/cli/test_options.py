"""What several subcommands share."""

from __future__ import annotations

from pathlib import Path

from hqsam.cli.options import describe_file, load_model


def test_a_file_of_the_same_name_with_other_content_is_another(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    before = describe_file(path)
    path.write_bytes(b"other")
    assert describe_file(path) != before and before.startswith("model.safetensors, 3 bytes")
    assert describe_file(tmp_path / "missing.pth").endswith("missing.pth")


def test_a_name_without_file_stands_for_its_weights() -> None:
    """Never for random ones, where there are any; the small models of tests have none."""
    assert load_model("hq_vit_tiny", None, "cpu").head_state == "trained"
    assert load_model("hq_test_tiny", None, "cpu").head_state == "random"
