"""``stemma bench`` prints one object a benchmark, and misses of a bar are an exit code."""

from __future__ import annotations

import json
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import commands, comparator, pictures, train
from benchmarks.commands import BENCHMARKS, bench
from benchmarks.fanout import fill, questions
from stemma.catalog import Catalog


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Figures that every benchmark gives instead of measuring."""
    figures: dict[str, Any] = {"coalesced_vs_single": 8.0, "ray_vs_loop": 1.0, "two_workers_vs_one": 1.7, "ratio": 0.3}
    module = SimpleNamespace(
        measure=lambda **given: {**figures, "given": {key: str(one) for key, one in given.items()}}
    )
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


def test_a_cap_is_a_bar_from_above(figures: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["comparator", "--json"]) == 0
    figures["ratio"] = 0.41
    assert bench(["comparator", "train"]) == 1
    said = capsys.readouterr().err
    assert "ratio is 0.41, at most 0.4" in said and "train" not in said


def test_the_data_goes_to_those_that_take_it(figures: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["all", "--json", "--data", "photographs"]) == 0
    given = {line["benchmark"]: line["given"] for line in map(json.loads, capsys.readouterr().out.splitlines())}
    taking = {name for name, benchmark in BENCHMARKS.items() if benchmark.takes_data}
    assert taking == {"train", "comparator"}
    assert given == {name: {"data": "photographs"} if name in taking else {} for name in BENCHMARKS}


def test_an_unknown_benchmark_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["warp"]) == 2
    assert "fanout" in capsys.readouterr().err


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_can_be_measured(name: str) -> None:
    assert callable(import_module(BENCHMARKS[name].module).measure)
    assert (import_module(BENCHMARKS[name].module).__doc__ or "").count(f"stemma bench {name} --json") == 1


def test_drawn_pictures_are_different_and_have_something_to_find() -> None:
    first, again, other = pictures.drawn(0), pictures.drawn(0), pictures.drawn(1)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.dtype == np.uint8 and first.shape == (336, 448, 3) and first.std() > 20


def test_a_pair_costs_what_both_ways_were_timed_at() -> None:
    found = comparator.measure(rounds=1, pairs=2)
    assert 1 <= found["pairs_timed"] <= 2
    assert found["pair_ms"] > 0 and found["dense_224_ms"] > 0
    assert found["ratio"] == pytest.approx(found["pair_ms"] / found["dense_224_ms"], rel=0.01)


def test_a_ratio_is_of_what_was_measured_one_after_the_other() -> None:
    # the machine was twice as slow in the second round
    assert train._ratio([1.9, 0.95, 1.9], [1.0, 0.5, 1.0]) == 1.9


def test_a_rate_counts_the_steps_behind_the_warm_up_and_their_waiting(tmp_path: Any) -> None:
    entries = [{"t": t, "loss": 1.0, "step_s": 9.0 if t <= train.WARM_UP else 0.4, "data_s": 0.1} for t in range(1, 9)]
    lines = [*entries, {"t": 8, "validation": {"score": 0.0}}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert train._rate(tmp_path) == pytest.approx(2.0)


def test_the_fanout_is_measured_on_a_real_collection(tmp_path: Any) -> None:
    fill(str(tmp_path / "c.stemma"), 50)
    with Catalog.open(str(tmp_path / "c.stemma")) as catalog:
        assert len(catalog) == 50
    first, second = questions(2)
    assert first.encoded.cells_VNF is None
    assert not np.array_equal(first.encoded.embedding_VD, second.encoded.embedding_VD)
