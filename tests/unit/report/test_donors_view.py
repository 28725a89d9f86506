"""Donors on the page: each part and its donor share a number and a link, and nothing unsure is put before a reader."""

from __future__ import annotations

import base64
import re
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemma.api import Answer, Candidate, Comparison, Coverage, Donor, Used, Versions
from stemma.report import Entry, donors, pictured, render
from stemma.report.donors import Whence, parts, section, unsure, words

SIZE = (400, 300)
BOX = (100.0, 60.0, 200.0, 160.0)
HOSTILE = '"><script>alert(1)</script>\u202e'


def png(mask_HW: np.ndarray) -> str:
    return base64.b64encode(cv2.imencode(".png", mask_HW)[1].tobytes()).decode()


def left_half(width: int = 100, height: int = 100) -> str:
    mask_HW = np.zeros((height, width), np.uint8)
    mask_HW[:, : width // 2] = 255
    return png(mask_HW)


def donor(image_id: str = "d", box: Any = BOX, **more: Any) -> Donor:
    known: dict[str, Any] = {
        "donor_box": (10, 20, 60, 70),
        "distance": 0.3,
        "probability": 0.93,
        "shown": True,
        "metadata": {"name": f"{image_id}.jpg"},
    }
    return Donor(image_id=image_id, query_box=box, **{**known, **more})


def whence(*given: Donor, **more: Any) -> Whence:
    grey = np.full((300, 400, 3), 128, np.uint8)
    pictures = {each.image_id: grey for each in given}
    known: dict[str, Any] = {"query_name": "q.jpg", "query_HWC": grey, "query_size": SIZE, "pictures": pictures}
    return Whence(donors=given, **{**known, **more})


def answer(*given: Donor, original: Candidate | None = None, verdict: Any = "spliced") -> Answer:
    return Answer(
        query_id="id-1",
        verdict=verdict,
        confidence=0.93,
        original=original,
        candidates=() if original is None else (original,),
        donors=given,
        coverage=Coverage(complete=True, images_searched=5, images_total=5),
        used=Used(k=10, nprobe=0, reranked=0, exact=True),
        versions=Versions(seq=1, codec="exact", weights="w"),
    )


def entry(answered: Answer) -> Entry:
    grey = np.full((300, 400, 3), 128, np.uint8)
    ids = pictured(answered)
    return Entry(name="q.jpg", answer=answered, query_HWC=grey, query_size=SIZE, originals=dict.fromkeys(ids, grey))


def test_each_part_is_a_link_to_its_donor_and_back_and_both_bear_its_number() -> None:
    page = section(whence(donor("a"), donor("b", (220, 100, 300, 200)), anchor="a7"))
    for number in (1, 2):
        part = re.search(rf'<a class="part"[^>]*id="a7-part-{number}"[^>]*>(.*?)</a>', page)
        assert part and f'href="#a7-donor-{number}"' in part[0] and f'aria-describedby="a7-said-{number}"' in part[0]
        card = re.search(rf'<li class="donor"[^>]*id="a7-donor-{number}">(.*?)</li>', page)
        assert card and f'href="#a7-part-{number}"' in card[0] and f'id="a7-said-{number}"' in card[0]
        assert all(f">{number}</span>" in each[0] and f'data-part="{number}"' in each[0] for each in (part, card))


def test_ids_are_unique_over_a_page_of_many_answers() -> None:
    page = render([entry(answer(donor("a"), donor("b"))) for _ in range(3)], title="t")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) == 3 * 2 * 3
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)
    assert set(re.findall(r'aria-describedby="([^"]+)"', page)) <= set(ids)


def test_an_unsure_donor_is_only_a_name_with_its_probability_in_a_folded_list() -> None:
    sure, other = donor("sure"), donor("other", probability=0.31, shown=False)
    page = render([entry(answer(sure, other))], title="t")
    before, _, folded = page.partition('<details class="unsure">')
    assert "other.jpg" not in before and "other.jpg" in folded and "31%" in folded
    assert pictured(answer(sure, other)) == ["sure"]
    assert unsure([sure]) == "" and "2 possible donors are" in unsure([other, other])
    alone = render([entry(answer(other, verdict="unknown"))], title="t")
    assert '<section class="parts' not in alone and "1 possible donor is" in alone and "<script" not in alone


def test_a_mask_is_outlined_and_laid_over_its_box_alone() -> None:
    (part,) = parts(whence(donor(mask=left_half())))
    (line,) = part.lines
    x, y = line[:, 0] * SIZE[0], line[:, 1] * SIZE[1]
    assert (x.min(), x.max()) == pytest.approx((100, 150), abs=1.1)
    assert (y.min(), y.max()) == pytest.approx((60, 160), abs=1.1)
    page = section(whence(donor(mask=left_half())))
    assert 'class="mask"' in page and "left:25.00%;top:20.00%;width:25.00%;height:33.33%" in page
    assert "show-masks" in page and "show-masks" not in section(whence(donor()))


@pytest.mark.parametrize(
    "mask",
    [None, "no base64 !", base64.b64encode(b"no picture at all, though long enough").decode(), left_half(99)],
    ids=["none", "no base64", "no png", "another size"],
)
def test_without_a_mask_that_fits_the_box_is_outlined(mask: str | None) -> None:
    (part,) = parts(whence(donor(mask=mask)))
    assert part.mask_HW is None
    assert np.allclose(part.lines[0] * SIZE, [[100, 60], [200, 60], [200, 160], [100, 160]])


def test_an_empty_mask_leaves_the_box_and_a_large_one_is_laid_small() -> None:
    (part,) = parts(whence(donor(mask=png(np.zeros((100, 100), np.uint8)))))
    assert len(part.lines) == 1 and len(part.lines[0]) == 4
    (large,) = parts(whence(donor(box=(0, 0, 3000, 2000), mask=left_half(3000, 2000)), query_size=(4096, 2048)))
    assert large.mask_HW is not None and max(large.mask_HW.shape) <= 512


def test_a_clone_is_called_one_and_both_its_places_are_outlined() -> None:
    twice_33 = np.diag([0.5, 0.5, 1.0])  # the working copy is half as large as the query
    clone = donor("host", clone=True)
    (part,) = parts(whence(clone, original_from_query_33=twice_33))
    assert part.source_N2 is not None
    assert np.allclose(part.source_N2 * SIZE, [[20, 40], [120, 40], [120, 140], [20, 140]])
    page = section(whence(clone, original_from_query_33=twice_33))
    assert "copied from another place of the same picture" in page and 'class="line from"' in page
    (unaligned,) = parts(whence(clone))
    assert unaligned.source_N2 is None
    assert "same picture" not in section(whence(donor("host")))


def test_words_count_what_is_covered_once_and_name_every_donor() -> None:
    half = donor("a", mask=left_half())
    share = 50 * 100 / (400 * 300)
    assert words(whence(half)) == f"About {100 * share:.1f}% of it comes from a.jpg."
    same = whence(half, donor("b", mask=left_half()), donor("c", (200, 60, 300, 160)))
    assert words(same) == "About 12% of it comes from 3 originals: a.jpg, b.jpg and c.jpg."
    assert words(whence(donor("host", clone=True))) == ""


def test_donors_beneath_a_found_original_have_a_heading_that_tells_clones_apart() -> None:
    one, clone = donor("a"), donor("host", clone=True)
    unshown = donor("z", clone=True, shown=False)
    assert donors.strip_heading([one, unshown]) == "Parts from other originals"
    assert donors.strip_heading([clone]) == "Copied within the picture"
    assert donors.strip_heading([one, clone]) == "Parts from elsewhere"
    comparison = Comparison(verdict="manipulated", transform=((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    host = Candidate(image_id="host", distance=0.1, refined_distance=0.1, comparison=comparison)
    page = render([entry(answer(one, clone, original=host, verdict="manipulated"))], title="t")
    assert page.index('<section class="compare') < page.index('<section class="parts is-strip"')
    assert "<h3>Parts from elsewhere</h3>" in page and page.count('<img class="mask"') == 0


def test_numbers_at_the_same_corner_stand_beside_each_other() -> None:
    drawn = parts(whence(donor("a"), donor("b"), donor("c", (101, 61, 180, 150)), donor("d", (300, 200, 350, 250))))
    assert [part.shift_px for part in drawn] == [0, 24, 48, 0]


def test_what_has_no_picture_is_still_named() -> None:
    page = section(whence(donor("a"), pictures={}))
    assert "no picture" in page and "a.jpg" in page
    bare = section(whence(donor("a"), query_HWC=None))
    assert "mosaic" not in bare and "href" not in bare and "a.jpg" in bare


def test_a_donor_is_never_certain() -> None:
    assert "<b>&gt; 99%</b> likely" in section(whence(donor(probability=1.0)))


def test_hostile_names_stay_text() -> None:
    given = whence(donor("a", metadata={"name": HOSTILE}), query_name=HOSTILE)
    page = section(given, heading=HOSTILE) + unsure([donor("b", metadata={"name": HOSTILE}, shown=False)])
    assert "<script" not in page and "\u202e" not in page and words(given).count("<script>") == 1


@given(box=st.tuples(*[st.floats(-1e4, 1e4)] * 4), source=st.tuples(*[st.floats(-1e4, 1e4)] * 4))
@settings(max_examples=60, deadline=None)
def test_no_box_however_wrong_breaks_the_page(box: Any, source: Any) -> None:
    wrong = donor(box=box, donor_box=source, mask=left_half(), clone=True)
    page = section(whence(wrong, original_from_query_33=np.eye(3)))
    assert 'class="donor"' in page and not re.search(r"[:,\s](nan|inf)", page)
    assert all(0 <= side <= 1 for part in parts(whence(wrong)) for side in part.box)
