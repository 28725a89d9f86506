"""``stemma bench`` prints one object a benchmark, and misses of a bar are an exit code."""

from __future__ import annotations

import json
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import commands
from benchmarks.commands import BENCHMARKS, bench
from benchmarks.fanout import fill, questions
from stemma.catalog import Catalog


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Figures that every benchmark gives instead of measuring."""
    figures: dict[str, Any] = {"coalesced_vs_single": 8.0}
    module = SimpleNamespace(measure=lambda: dict(figures))
    monkeypatch.setattr(commands, "import_module", lambda name: module)
    return figures


def test_one_object_a_benchmark_on_standard_output(figures: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["all", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["benchmark"] for line in lines] == list(BENCHMARKS)
    assert lines[-1]["coalesced_vs_single"] == 8.0
    assert bench(["fanout"]) == 0
    assert "coalesced_vs_single" in capsys.readouterr().out


def test_a_missed_bar_is_said_and_returns_1(figures: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    figures["coalesced_vs_single"] = 2.9
    assert bench(["fanout", "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["coalesced_vs_single"] == 2.9
    assert "the bar is 3.0" in said.err


def test_an_unknown_benchmark_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["warp"]) == 2
    assert "fanout" in capsys.readouterr().err


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_can_be_measured(name: str) -> None:
    assert callable(import_module(BENCHMARKS[name].module).measure)
    assert (import_module(BENCHMARKS[name].module).__doc__ or "").count(f"stemma bench {name} --json") == 1


def test_the_fanout_is_measured_on_a_real_collection(tmp_path: Any) -> None:
    fill(str(tmp_path / "c.stemma"), 50)
    with Catalog.open(str(tmp_path / "c.stemma")) as catalog:
        assert len(catalog) == 50
    first, second = questions(2)
    assert first.encoded.cells_VNF is None
    assert not np.array_equal(first.encoded.embedding_VD, second.encoded.embedding_VD)
