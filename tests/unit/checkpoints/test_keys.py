from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqsam.checkpoints.keys import Dropped, KeyMap, Rule

SHIFTED = Rule("layers.{i}.down.conv{k}.{p}", "stages.{i+1}.down.layers.{k-1}.{p}")


@pytest.mark.parametrize(
    ("rule", "name", "expected"),
    [
        (Rule("a.{i}.{p}", "b.{i}.{p}"), "a.12.weight", "b.12.weight"),
        (Rule("a.{i}.{p}", "b.{i}.{p}"), "a.12.weights", None),
        (Rule("a.{i}.{p}", "b.{i}.{p}"), "x.a.12.weight", None),
        (Rule("a.{i}.{p}", "b.{i}.{p}"), "a.12.weight\n", None),
        (Rule("a.{i}.{p}", "b.{i}.{p}"), "a.012.weight", None),
        (Rule("a.{i}.{p}", "b.{i}.{p}"), "a.-1.weight", None),
        (Rule("a.{i}.{p}", "b.{i}.{p}"), "a.1.running_mean", None),
        (Rule("a.{i}.{p}", "b.{i}.{p}"), "aX1.weight", None),
        (Rule("a.bn.{stat}", "b.{stat}"), "a.bn.running_mean", "b.running_mean"),
        (Rule("a.{proj}", "b.{proj}"), "a.out_proj", "b.out_proj"),
        (SHIFTED, "layers.0.down.conv1.bias", "stages.1.down.layers.0.bias"),
        (SHIFTED, "layers.0.down.conv0.bias", None),
        (SHIFTED.inverse(), "stages.1.down.layers.0.bias", "layers.0.down.conv1.bias"),
        (SHIFTED.inverse(), "stages.0.down.layers.0.bias", None),
        (SHIFTED.inverse(), "stages.1.down.layers.9.bias", None),
    ],
)
def test_a_rule_matches_whole_names(rule: Rule, name: str, expected: str | None) -> None:
    assert rule.apply(name) == expected


@given(i=st.integers(0, 200), k=st.integers(1, 9), p=st.sampled_from(["weight", "bias"]))
def test_the_inverse_undoes_a_rule(i: int, k: int, p: str) -> None:
    name = f"layers.{i}.down.conv{k}.{p}"
    renamed = SHIFTED.apply(name)
    assert renamed == f"stages.{i + 1}.down.layers.{k - 1}.{p}"
    assert SHIFTED.inverse().apply(renamed) == name


def test_both_sides_need_the_same_fields() -> None:
    with pytest.raises(ValueError, match="same fields"):
        Rule("a.{i}.{p}", "b.{p}")


def test_translation_tells_renamed_dropped_and_unknown_apart() -> None:
    keys = KeyMap([Rule("a.{p}", "b.{p}")], [Dropped("old.{i}", "no longer used")])
    result = keys.translate(["a.weight", "old.3", "c", "a.bias"])
    assert result.names == {"a.weight": "b.weight", "a.bias": "b.bias"}
    assert result.dropped == {"old.3": "no longer used"}
    assert result.unknown == ("c",)
    assert keys.inverse().translate(["b.bias"]).names == {"b.bias": "a.bias"}


def test_two_rules_for_one_name_are_a_defect_whatever_their_order() -> None:
    rules = [Rule("a.{p}", "b.{p}"), Rule("a.weight", "c")]
    for order in (rules, rules[::-1]):
        with pytest.raises(ValueError, match=r"a\.weight must be matched by one rule"):
            KeyMap(order).translate(["a.weight"])
