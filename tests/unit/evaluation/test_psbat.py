"""PSBat-Ret and PSBat-Pair: sizes as published, the right side transformed, every query repeatable."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from evaluation import psbat
from training.ps_battles import Entry, Pair, PsBattles

GROUPS = 4


def _entry(folder: Path, id: str, group: str, level: int) -> Entry:
    """A ramp from black to ``level`` in each channel's own direction."""
    row, column = np.indices((60, 80))
    rgb = np.dstack([column * level // 80, row * level // 60, (row + column) * level // 140]).astype(np.uint8)
    path = folder / f"{id}.png"
    assert cv2.imwrite(str(path), rgb)
    return Entry(id=id, group=group, file=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PsBattles:
    folder = tmp_path_factory.mktemp("psbat")
    pairs = []
    for g in range(GROUPS):
        original = _entry(folder, f"g{g}", f"g{g}", 100 + 20 * g)
        pairs += [Pair(original, _entry(folder, f"g{g}v{v}", f"g{g}", 105 + 20 * g + 4 * v)) for v in range(2)]
    return PsBattles(folder, tuple(pairs))


def test_retrieval_has_one_edit_and_ten_versions_of_each_kind_for_every_pair(data: PsBattles) -> None:
    queries = psbat.retrieval(data.pairs)
    sizes = {kind: sum(query.kind == kind for query in queries) for kind in psbat.COMPARISON}
    assert sizes == {"benign": 10 * 2 * GROUPS, "manip": 2 * GROUPS, "both": 10 * 2 * GROUPS, "distinct": 0}
    for query in queries:
        assert query.expected == query.pair.original.id
        assert query.source == (query.pair.original if query.kind == "benign" else query.pair.variant)


def test_comparison_has_four_equal_sets_and_strangers_of_other_groups(data: PsBattles) -> None:
    queries = psbat.comparison(data.pairs, seed=1)
    assert [query.kind for query in queries] == [kind for kind in psbat.COMPARISON for _ in data.pairs]
    strangers = queries[-len(data.pairs) :]
    assert all(query.source.group != query.pair.original.id and query.expected is None for query in strangers)
    assert strangers == psbat.comparison(data.pairs, seed=1)[-len(data.pairs) :]
    drawn = [[query.source.id for query in psbat.comparison(data.pairs, seed=s)[-8:]] for s in range(20)]
    assert {one for row in drawn for one in row} == {f"g{g}" for g in range(GROUPS)}
    assert len({tuple(row) for row in drawn}) > 10


def test_a_photograph_posted_twice_is_no_stranger_to_itself(data: PsBattles) -> None:
    first = data.pairs[0]
    again = Entry(id="again", group="again", file=first.original.file, sha256=first.original.sha256)
    pairs = [first, Pair(again, data.pairs[1].variant), data.pairs[2]]
    for seed in range(10):
        for query in psbat.comparison(pairs, seed=seed)[-3:]:
            assert query.source.sha256 != query.pair.original.sha256


def test_strangers_need_a_second_group(data: PsBattles) -> None:
    with pytest.raises(ValueError, match="one group"):
        psbat.comparison(data.pairs[:2], seed=0)


def test_edits_come_as_they_are_and_the_rest_transformed_and_repeatable(data: PsBattles) -> None:
    for query in [*psbat.comparison(data.pairs, seed=1)[::3], *psbat.retrieval(data.pairs)[:3]]:
        picture, source = psbat.render(query, data, seed=1), data.read(query.source)
        again, other = psbat.render(query, data, seed=1), psbat.render(query, data, seed=2)
        assert picture is not None and source is not None and again is not None and other is not None
        assert np.array_equal(picture, again)
        assert np.array_equal(picture, source) == (query.kind == "manip")
        assert np.array_equal(picture, other) == (query.kind == "manip")


def test_the_ten_versions_of_a_pair_differ(data: PsBattles) -> None:
    made = [psbat.render(query, data, seed=1) for query in psbat.retrieval(data.pairs)[:10]]
    assert len({picture.tobytes() for picture in made if picture is not None}) == 10


def test_a_source_that_is_gone_gives_no_query_and_is_named(data: PsBattles) -> None:
    gone = Entry(id="gone", group="g0", file="gone.png", sha256="0" * 64)
    query = psbat.retrieval([Pair(data.pairs[0].original, gone)])[10]
    assert query.kind == "manip" and psbat.render(query, data, seed=1) is None
    assert data.skipped["gone.png"] == "missing or empty"
