"""A comparison as HTML: what it says and shows, that it is escaped, and that it can be read."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import stemma.report.page as page_room
from stemma.api import Answer, Candidate, Comparison, Coverage, Heatmap, Probabilities, Region, Used, Versions
from stemma.errors import NotFound
from stemma.report import Entry, render, write_comparison_report
from stemma.report.comparison import CROPS_SHOWN, Sight, changed_percent, compared, odds_bar, words
from stemma.report.markup import percent

HERE = Path(page_room.__file__).parent
HOSTILE = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>"
SIZE = (90, 60)


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC))


def comparison(verdict: Any = "manipulated", places: int = 1, **more: Any) -> Comparison:
    heat_RC = np.zeros((37, 56), np.float32)
    regions = []
    for place in range(places):
        left = 2 + 8 * place
        heat_RC[10:20, left : left + 6] = 0.9 - 0.1 * place
        box = (left / 56 * SIZE[0], 10 / 37 * SIZE[1], (left + 6) / 56 * SIZE[0], 20 / 37 * SIZE[1])
        regions.append(Region(box=box, strength=0.9 - 0.1 * place))
    known: dict[str, Any] = {
        "probabilities": Probabilities(benign=0.02, manipulated=0.97, distinct=0.01),
        "heatmap": Heatmap(rows=37, cols=56, values=tuple(heat_RC.ravel().tolist())),
        "regions": tuple(regions),
        "transform": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    }
    return Comparison(verdict=verdict, **{**known, **more})


def sight(shown: Comparison, **more: Any) -> Sight:
    known: dict[str, Any] = {
        "query_HWC": picture(1),
        "query_size": SIZE,
        "original_HWC": picture(2),
        "query_name": "q.jpg",
        "original_name": "o.jpg",
    }
    return Sight(comparison=shown, **{**known, **more})


def entry(shown: Comparison, name: str = "q.jpg", **more: Any) -> Entry:
    best = Candidate(
        image_id="a",
        distance=0.1,
        refined_distance=0.1,
        match=30.0,
        probabilities=shown.probabilities,
        metadata={"name": name},
        comparison=shown,
    )
    other = best.model_copy(update={"image_id": "b", "comparison": None})
    answer = Answer(
        query_id="id",
        verdict=shown.verdict,
        confidence=0.9,
        original=best,
        candidates=(best, other),
        coverage=Coverage(complete=True, images_searched=2, images_total=2),
        used=Used(k=10, nprobe=0, reranked=2, exact=True),
        versions=Versions(seq=7, codec="exact", weights="feed"),
        timings_ms={"decode": 1.0, "compare": 9.0, "total": 10.0},
    )
    return Entry(name=name, answer=answer, query_HWC=picture(1), **{"originals": {"a": picture(2)}, **more})


def pictures(html: str, kind: str) -> list[np.ndarray]:
    bodies = [base64.b64decode(body) for body in re.findall(rf'src="data:image/{kind};base64,([^"]+)"', html)]
    return [cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_UNCHANGED) for body in bodies]


def test_both_pictures_are_there_in_the_querys_frame() -> None:
    moved = comparison(transform=((1.0, 0.0, 30.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    html = compared(sight(moved))
    original, query = pictures(html, "jpeg")[:2]
    assert np.abs(query[..., ::-1].astype(int) - picture(1)).mean() < 8
    # the original's column 30 stands in the query's column 0; beyond it nothing is left
    assert np.abs(original[:, :60, ::-1].astype(int) - picture(2)[:, 30:]).mean() < 8
    assert "clip-path:polygon(-33.33% 0.00%, 66.67% 0.00%, 66.67% 100.00%, -33.33% 100.00%)" in html
    assert "33% of the picture, not compared" in html


def test_a_mirrored_original_is_mirrored_back() -> None:
    shown = comparison(transform=((-1.0, 0.0, 90.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), mirrored=True)
    html = compared(sight(shown))
    assert np.abs(pictures(html, "jpeg")[0][..., ::-1].astype(int) - picture(2)[:, ::-1]).mean() < 8
    assert "mirrored" in html


def test_the_heatmap_is_a_small_picture_whose_alpha_is_the_probability() -> None:
    (heat,) = pictures(compared(sight(comparison())), "png")
    assert heat.shape == (37, 56, 4) and heat[15, 4, 3] == round(0.9 * 255) and heat[0, 0, 3] == 0


def test_the_line_starts_right_of_the_strongest_change_but_never_at_the_edge() -> None:
    def split(x1: float) -> int:
        one = Region(box=(0, 0, x1, 10), strength=0.9)
        return int(re.findall(r"--split:(\d+)%", compared(sight(comparison(regions=(one,)))))[0])

    assert split(20.0) == 50 and 60 < split(54.0) <= 66 and split(90.0) == 84


def test_crops_show_the_strongest_places_and_count_the_rest() -> None:
    html = compared(sight(comparison(places=5)))
    assert html.count("<li><span class=") == CROPS_SHOWN and "and 2 more" in html
    assert html.count('<span class="pin"') == 5 + CROPS_SHOWN
    assert "What changed" in html and "Places that stand out" in compared(sight(comparison("benign")))


def test_without_a_transform_there_is_no_slider_and_the_original_is_as_it_is() -> None:
    html = compared(sight(comparison(transform=None)))
    assert 'class="compare is-apart"' in html and 'name="split"' not in html and "Side by side" not in html
    assert np.abs(pictures(html, "jpeg")[0][..., ::-1].astype(int) - picture(2)).mean() < 8
    assert "aligned" in html


def test_without_a_heatmap_the_regions_are_boxes() -> None:
    html = compared(sight(comparison(heatmap=None)))
    assert pictures(html, "png") == [] and 'name="heat"' not in html
    corners = re.findall(r'class="line" d="M([^"]+)Z"', html)[0].split(" L")
    assert corners[0] == "3.2,16.2" and len(corners) == 4


def test_a_clean_comparison_offers_no_outlines() -> None:
    html = compared(sight(comparison("benign", places=0)))
    assert "show-marks" not in html and "<svg" not in html and "<dd>none</dd>" in html


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (comparison(), "About 2.9% of the picture was changed, in one place."),
        (comparison(places=3), "About 8.7% of the picture was changed, in 3 places."),
        (comparison(places=0), "no single place stands out"),
        (comparison("benign"), "What it shows is unchanged"),
        (comparison("inconclusive"), "It leans to changed"),
        (
            comparison("inconclusive", probabilities=Probabilities(benign=0.5, manipulated=0.4, distinct=0.1)),
            "It leans to unchanged",
        ),
        (comparison("unknown"), "neither was made from the other"),
        (Comparison(verdict="identical"), "byte for byte"),
        (Comparison(verdict="spliced"), ""),
    ],
)
def test_it_is_said_in_words(shown: Comparison, said: str) -> None:
    assert said in words(sight(shown))


def test_the_share_follows_the_cards_threshold() -> None:
    assert "About 2.9%" in words(sight(comparison(places=2), changed_min=0.85))


@pytest.mark.parametrize(
    ("share", "said"), [(0.0, "0.0%"), (0.0004, "< 0.1%"), (0.0312, "3.1%"), (0.099, "9.9%"), (0.27, "27%")]
)
def test_an_area_has_the_digits_it_deserves(share: float, said: str) -> None:
    assert changed_percent(share) == said


@pytest.mark.parametrize(("share", "said"), [(0, "0%"), (0.003, "< 1%"), (0.5, "50%"), (0.996, "> 99%"), (1, "100%")])
def test_a_chance_is_never_rounded_to_certainty(share: float, said: str) -> None:
    assert percent(share) == said


def test_the_bar_is_as_long_as_the_probabilities() -> None:
    widths = re.findall(r"width:([\d.]+)%", odds_bar(Probabilities(benign=0.02, manipulated=0.97, distinct=0.01)))
    assert [float(width) for width in widths] == [2.0, 97.0, 1.0]


def test_candidates_that_were_compared_say_so() -> None:
    page = render([entry(comparison())], title="t")
    strip = page[page.index('class="strip"') : page.index("<details")]
    assert "changed 97%" in strip and strip.count('class="odds"') == 1


def test_inconclusive_reads_otherwise_with_a_comparison() -> None:
    assert "too close to call" in render([entry(comparison("inconclusive"))], title="t")


def test_where_the_original_cannot_be_shown_the_answer_is_still_there() -> None:
    page = render([entry(comparison(), originals={})], title="t")
    assert '<section class="compare' not in page and "<script" not in page and "Changed from its original" in page


def test_hostile_names_stay_text_and_the_one_script_is_ours() -> None:
    page = render([entry(comparison(), name=HOSTILE)], title=HOSTILE)
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert scripts == [(HERE / "report.js").read_text(encoding="utf-8")]
    assert "<img src=x" not in page and page.count("&lt;script&gt;alert(1)") >= 4
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert not re.search(r"https?:|url\(|@import|href=", page)
    names: list[str] = []

    class Names(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            names.extend(name for name, _ in attrs)

    Names().feed(page)
    assert names and not any(name.startswith("on") for name in names)


def test_a_comparison_of_large_pictures_stays_small() -> None:
    size = (4000, 3000)
    noise = np.random.default_rng(0).integers(0, 256, (384, 512, 3), np.uint8)
    scale = ((512 / 4000, 0.0, 0.0), (0.0, 384 / 3000, 0.0), (0.0, 0.0, 1.0))
    html = compared(sight(comparison(transform=scale), query_HWC=noise, original_HWC=noise, query_size=size))
    assert len(html) < 700_000  # of noise; photographs take a quarter


@pytest.mark.parametrize("as_bytes", [False, True])
def test_two_pictures_make_a_page_of_their_own(tmp_path: Path, as_bytes: bool) -> None:
    paths = [tmp_path / "q <1>.png", tmp_path / "o.png"]
    for seed, path in enumerate(paths, 1):
        cv2.imwrite(str(path), picture(seed)[..., ::-1])
    query, original = (path.read_bytes() if as_bytes else path for path in paths)
    write_comparison_report(tmp_path / "out.html", query, original, comparison())
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "The same picture, changed" in page and "About 2.9%" in page and page.count("<article") == 1
    assert ("q &lt;1&gt;.png" in page) is not as_bytes
    back = pictures(page, "jpeg")
    assert np.abs(back[1][..., ::-1].astype(int) - picture(1)).mean() < 8


def test_a_card_that_is_not_there_leaves_the_half(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise NotFound("no such weights")

    monkeypatch.setattr(page_room, "comparator_card", missing)
    assert page_room.shipped_changed_min() == 0.5


def palettes() -> dict[str, dict[str, str]]:
    css = (HERE / "report.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{([^}]*)\}", css)
    assert len(blocks) == 3
    found = [dict(re.findall(r"--([a-z]+):\s*(#[0-9a-f]+)", block)) for block in blocks]
    return dict(zip(("light", "dark", "paper"), found, strict=True))


def parts(colour: str) -> np.ndarray:
    """#rgb or #rrggbb as three numbers 0 to 255."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    return np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)], np.float64)


def luminance(rgb: np.ndarray) -> float:
    """WCAG 2: relative luminance."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("name", ["light", "dark", "paper"])
@pytest.mark.parametrize(
    ("ink", "ground"),
    [(ink, ground) for ink in ("ink", "soft") for ground in ("page", "card", "frame")]
    + [(tone, ground) for tone in ("good", "bad", "maybe", "info", "none") for ground in ("card", "badge")],
)
def test_every_word_can_be_read(name: str, ink: str, ground: str) -> None:
    palette = {key: parts(colour) for key, colour in palettes()[name].items()}
    palette["badge"] = 0.09 * palette[ink] + 0.91 * palette["card"]
    light, dark = sorted((luminance(palette[ink]), luminance(palette[ground])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG AA for text


def test_the_legend_shows_the_colours_of_the_heatmap() -> None:
    from stemma.report.overlay import RAMP

    css = (HERE / "report.css").read_text(encoding="utf-8")
    legend = re.findall(r"linear-gradient\(90deg,([^;]+)\);", css)[0]
    shown = [tuple(int(part) for part in found) for found in re.findall(r"rgb\((\d+) (\d+) (\d+)", legend)]
    assert shown == [colour for _, colour in RAMP]
