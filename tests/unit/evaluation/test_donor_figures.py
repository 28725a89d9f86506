"""Donors against the truth: ranks, masks, false ones, ceilings and cost, on answers made by hand."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.ceilings import Covered, covers, searched_boxes, with_regions
from evaluation.cost import donor_cost, sample
from evaluation.donors import donor_figures
from evaluation.outcomes import Outcome, outcome, painted, read, save
from evaluation.queries import Asked, Query
from evaluation.tables import tables
from evaluation.verdicts import verdict_figures
from stemma.api import Answer, Ask, Comparison, Donor, Region
from stemma.errors import Corrupt
from stemma.flow import Pixels

MakeAnswer = Callable[..., Answer]
HEIGHT, WIDTH = 40, 60
SHARE = {"share", "n", "low", "high"}


def png(mask_HW: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(mask_HW.astype(np.uint8) * 255).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def donor(image_id: str, **change: object) -> Donor:
    known = {"query_box": (10, 10, 30, 30), "donor_box": (0, 0, 9, 9), "distance": 0.1, "probability": 0.9}
    return Donor(image_id=image_id, **{**known, "shown": True, **change})  # type: ignore[arg-type]


@pytest.fixture
def spliced(tmp_path: Path) -> Query:
    """A splice of ``d`` that covers the box of ``donor``."""
    mask_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask_HW[10:30, 10:30] = 255
    Image.fromarray(mask_HW).save(tmp_path / "mask.png")
    known = {"donor": "d", "query_box": (10.0, 10.0, 30.0, 30.0), "donor_box": (0.0, 0.0, 9.0, 9.0), "area": 0.17}
    return Query(
        path=Path("q.jpg"),
        set="splice",
        original=None,
        photograph="d.jpg",
        mirrored=False,
        mask=tmp_path / "mask.png",
        **known,  # type: ignore[arg-type]
    )


def made(query: Query, answer: Answer) -> Outcome:
    return outcome(Asked(query=query, answer=answer, ms=1.0), 0.5)


def test_a_donor_is_ranked_among_donors_shown_or_not_and_clones_are_none(
    spliced: Query, make_answer: MakeAnswer
) -> None:
    listed = [donor("host", clone=True), donor("x", shown=False), donor("d", shown=False)]
    found = made(spliced, make_answer([], donors=listed))
    assert (found.donor_rank, found.donors_shown, found.clones_shown, found.donor_iou) == (2, 0, 1, None)
    assert made(spliced, make_answer([])).donor_rank is None
    # a query without a donor has no rank, whatever it is shown
    stranger = made(replace(spliced, set="unknown", donor=None, mask=None), make_answer([], donors=listed[1:]))
    assert (stranger.donor_rank, stranger.donors_shown) == (None, 0)


def test_the_mask_of_the_first_donor_is_laid_into_its_box(spliced: Query, make_answer: MakeAnswer) -> None:
    half = np.zeros((20, 20), bool)
    half[:, :10] = True
    assert made(spliced, make_answer([], donors=[donor("d", mask=png(half))])).donor_iou == 0.5
    assert made(spliced, make_answer([], donors=[donor("d")])).donor_iou == 1.0
    assert made(spliced, make_answer([], donors=[donor("x"), donor("d")])).donor_iou is None
    with pytest.raises(Corrupt, match="mask"):
        painted(donor("d", mask=png(half[:5])), (HEIGHT, WIDTH))


def test_outcomes_about_donors_come_back_from_their_file(
    spliced: Query, make_answer: MakeAnswer, tmp_path: Path
) -> None:
    found = with_regions([made(spliced, make_answer([], donors=[donor("d")]))], {"q.jpg": Covered(True, False)})
    save(found, tmp_path / "outcomes.jsonl")
    assert read(tmp_path / "outcomes.jsonl") == found
    assert (found[0].query_region, found[0].donor_region) == (True, False)


def plain(kind: str, **change: object) -> Outcome:
    return replace(
        Outcome(
            file="q.jpg",
            set=kind,
            photograph=str(change.pop("photograph", "a")),
            mirrored=False,
            edit=None,
            area=0.0,
            benign=(),
            left_out=False,
            found=False,
            named=False,
            verdict="unknown",
            confidence=0.5,
            probabilities=None,
        ),
        **change,  # type: ignore[arg-type]
    )


def oracle() -> list[Outcome]:
    return [
        plain("splice", area=0.04, donor_rank=1, donor_iou=0.5, donors_shown=2, query_region=True, donor_region=True),
        plain("splice", area=0.07, donor_rank=10, donors_shown=1, query_region=False, donor_region=True),
        plain("splice", area=0.2, donor_rank=11, query_region=True, donor_region=False),
        plain("splice", area=0.2, donor_rank=1, donor_iou=1.0, photograph="b"),
        plain("splice", area=0.2),
        plain("unknown", donors_shown=1),
        plain("benign"),
        plain("manip", edit="splice", donors_shown=1),  # it has a donor
        plain("both", edit="clone", clones_shown=1),
        plain("manip", edit="clone"),
    ]


def test_the_figures_are_those_counted_by_hand() -> None:
    result = donor_figures(oracle())
    assert (result["donor"]["R@1"]["share"], result["donor"]["R@10"]["share"], result["donor"]["n"]) == (0.4, 0.6, 5)
    rows = [(each["area"], each["R@1"]["share"], each["n"]) for each in result["donor"]["by_area"]]
    assert rows == [("under 5%", 1.0, 1), ("5-10%", 0.0, 1), ("over 10%", round(1 / 3, 4), 3)]
    assert (result["donor_shown"]["right"]["share"], result["donor_shown"]["wrong"]["share"]) == (0.2, 0.2)
    assert (result["false_donors"]["share"], result["false_donors"]["n"]) == (0.25, 4)
    assert result["false_donors"]["by_set"]["unknown"]["share"] == 1.0
    assert (result["clones_shown"]["share"], result["clones_shown"]["n"]) == (0.5, 2)
    assert result["regions_ceiling"]["query"]["share"] == result["regions_ceiling"]["donor"]["share"] == 0.6667
    assert (result["donor_mask_iou"]["mean"], result["donor_mask_iou"]["n"]) == (0.75, 2)
    json.dumps(result, allow_nan=False)


def test_the_figures_of_nothing_have_the_same_shape() -> None:
    result = donor_figures([])
    assert set(result["donor"]) == {"R@1", "R@10", "n", "by_area"} and set(result["donor"]["R@1"]) == SHARE
    assert set(result["false_donors"]) == {*SHARE, "upper_95", "by_set"}
    assert set(result["regions_ceiling"]) == {"query", "donor"}
    assert set(result["donor_mask_iou"]) == {"mean", "n", "low", "high"}
    json.dumps(result, allow_nan=False)


def test_a_spliced_verdict_trusts_in_no_class_of_the_found() -> None:
    assert plain("unknown", verdict="spliced", confidence=0.9).scores == pytest.approx((0.0, 0.0, 0.1))


def test_the_tables_show_donors_beside_what_was_asked() -> None:
    result = {**verdict_figures(oracle(), 0.5), **donor_figures(oracle()), "donor_search_ratio": 2.5, "mcc": 0.7}
    written = tables(result)
    assert "| donor first | 0.65 | 0.400 [0.053, 0.853] | 5 | **no** |" in written
    assert "| search with donors against without | at most 3 | 2.500 |  | yes |" in written
    assert "| copy-move localization, MCC | 0.6 | 0.700 |  | yes |" in written
    assert "| object 5-10% of the picture | 0.000" in written and "| object covered by a region, donor |" in written


def test_a_region_covers_what_it_overlaps_by_half() -> None:
    assert covers([(0, 0, 10, 10)], (0, 0, 10, 20)) and not covers([(0, 0, 10, 9)], (0, 0, 10, 20))
    assert not covers([], (0, 0, 1, 1))


def test_regions_are_the_detectors_of_a_stranger_and_the_heatmaps_of_a_found_one(
    spliced: Query, make_answer: MakeAnswer, tmp_path: Path
) -> None:
    pixels = Pixels(rgb_HWC=np.zeros((20, 30, 3), np.uint8), width=60, height=40, sha256="", format="PNG")
    box_14 = np.array([[1, 2, 3, 4]], np.float32)
    path = tmp_path / "q.jpg"
    path.write_bytes(b"q")
    strange = Asked(query=replace(spliced, path=path), answer=make_answer([]), ms=1.0)
    # in pixels of the full size, which is twice the working size
    assert searched_boxes(strange, lambda body: pixels, lambda rgb_HWC: box_14) == [[2.0, 4.0, 6.0, 8.0]]
    answer = make_answer(["a"], found=True)
    assert answer.original is not None
    shown = Comparison(verdict="manipulated", regions=(Region(box=(5, 6, 7, 8), strength=0.9),))
    answer = answer.model_copy(update={"original": answer.original.model_copy(update={"comparison": shown})})
    found = Asked(query=spliced, answer=answer, ms=1.0)
    assert searched_boxes(found, lambda body: pixels, lambda rgb_HWC: box_14) == [(5.0, 6.0, 7.0, 8.0)]


def several(tmp_path: Path, counts: dict[str, int]) -> list[Query]:
    queries = []
    for kind, count in counts.items():
        for number in range(count):
            path = tmp_path / f"{kind}{number}.jpg"
            path.write_bytes(kind.encode())
            queries.append(Query(path=path, set=kind, original=None, photograph="a", mirrored=False))
    return queries


def test_the_cost_is_weighted_by_the_sets_and_taken_in_turn(tmp_path: Path, make_answer: MakeAnswer) -> None:
    queries = several(tmp_path, {"identical": 2, "unknown": 6})
    now, order = [0.0], []

    def search(body: bytes, ask: Ask) -> Answer:
        order.append(ask.donors)
        now[0] += 1.0 if ask.donors == 0 or body == b"identical" else 4.0
        return make_answer([])

    result = donor_cost(queries, search, clock=lambda: now[0])
    # identical queries search for nothing
    assert result["donor_search"]["identical"]["ratio"] == 1.0 and result["donor_search"]["unknown"]["ratio"] == 4.0
    assert result["donor_search_ratio"] == pytest.approx((2 * 1 + 6 * 4) / 8)
    assert result["donor_search"]["unknown"]["stages_ms"] == {"total": 12.0}
    assert order[1:5] == [10, 0, 0, 10] and order.count(10) == order.count(0) + 1


def test_a_sample_is_spread_over_every_set(tmp_path: Path) -> None:
    chosen = sample(several(tmp_path, {"benign": 10, "splice": 2}), 4)
    assert [query.path.stem for query in chosen["benign"]] == ["benign0", "benign3", "benign6", "benign9"]
    assert len(chosen["splice"]) == 2
