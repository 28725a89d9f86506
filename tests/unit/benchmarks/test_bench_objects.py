"""The sums of searching by objects, by hand and in the docs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.objects import measure, memory


@pytest.fixture(scope="module")
def sums() -> dict[str, Any]:
    return memory()


def test_a_hundred_million_images_by_hand(sums: dict[str, Any]) -> None:
    objects = 100_000_000 * 17
    assert sums["codes_gb"] == pytest.approx(objects * 32 / 1e9)
    assert sums["vectors_gb"] == pytest.approx(objects * 256 / 1e9)
    assert sums["boxes_gb"] == pytest.approx(objects * 16 / 1e9)
    assert sums["rows_gb"] == sums["starts_gb"] == pytest.approx(0.8), "eight bytes an image each"
    assert sums["scanned_gb"] == pytest.approx(objects * (32 + 4) / 1e9)
    assert sums["mapped_gb"] == pytest.approx(objects * (256 + 16) / 1e9 + 1.6)
    assert sums["paper_codes_gib"] == 23.84, "OE-SIR: around 24G, of codes alone"


def test_the_docs_hold_the_sums_that_the_command_prints(sums: dict[str, Any]) -> None:
    text = (Path(__file__).parents[3] / "docs/sketches.md").read_text(encoding="utf-8")
    for name in ("codes_gb", "vectors_gb", "boxes_gb", "scanned_gb", "mapped_gb"):
        label = name.removesuffix("_gb")
        assert f"| {label} | {sums[name]:,.1f} GB |" in text, f"docs/sketches.md: {label} is {sums[name]:,.1f} GB"
    assert f"{sums['paper_codes_gib']} GiB" in text


def test_both_searches_are_timed() -> None:
    figures = measure(rounds=1, timed_images=30)
    assert figures["objects_per_image"] == 17
    assert figures["image_ms"] > 0 and figures["objects_ms"] > 0
    assert figures["objects_vs_image"] == pytest.approx(figures["objects_ms"] / figures["image_ms"], rel=0.05)
