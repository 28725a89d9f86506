"""The report page in a real browser: nothing is fetched or complained of, and what moves, moves.

Chromium is driven over its own pipe (DevTools protocol), so there is no port and no driver to install. The query is
plain red and the original plain blue: a screenshot's pixel then says which of the two is shown there.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from stemma.api import Answer, Candidate, Comparison, Coverage, Donor, Heatmap, Probabilities, Region, Used, Versions
from stemma.report import Entry, render

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--mute-audio", "--force-color-profile=srgb"),
)
TO_PIPE = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
WAIT_S = 60.0
WIDTH, HEIGHT = 400, 300
RED, BLUE = (200, 30, 30), (30, 30, 200)


class Browser:
    """One headless Chromium and its one page."""

    def __init__(self, program: str, profile: Path) -> None:
        (child_in, self.out), (self.into, child_out) = os.pipe(), os.pipe()
        # above 9: the child's own 3 and 4 are then free to take their places
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (child_in, child_out)]
        arguments = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", TO_PIPE, *map(str, ends), *arguments],
            pass_fds=ends,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for end in (child_in, child_out, *ends):
            os.close(end)
        self.events: list[dict[str, Any]] = []
        self.rest, self.asked, self.session = b"", 0, ""
        (target,) = [t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self.session = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        # a window that the system has not activated yet, on a busy machine, paints no focus
        self.ask("Emulation.setFocusEmulationEnabled", enabled=True)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """One call of the protocol; events that come meanwhile are kept."""
        self.asked += 1
        message = {"id": self.asked, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + WAIT_S
        while (reply := self._read(until)).get("id") != self.asked:
            self.events.append(reply)
        assert "error" not in reply, (method, reply)
        result: dict[str, Any] = reply["result"]
        return result

    def _read(self, until: float) -> dict[str, Any]:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.into], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            more = os.read(self.into, 1 << 20)
            assert more, "the browser went away"
            self.rest += more
        message, _, self.rest = self.rest.partition(b"\0")
        parsed: dict[str, Any] = json.loads(message)
        return parsed

    def wait_for(self, method: str) -> None:
        until = time.monotonic() + WAIT_S
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._read(until))

    def open(self, path: Path, *, width: int = 1280, dark: bool = False, script: bool = True, media: str = "") -> None:
        """Load a file in a window of this width, with the reader's settings."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", media=media, features=scheme)
        self.ask("Emulation.setScriptExecutionDisabled", value=not script)
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=False)
        self.events.clear()
        self.ask("Page.navigate", url=path.as_uri())
        self.wait_for("Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """A JavaScript expression's value."""
        reply = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def until(self, seen: Callable[[], bool]) -> bool:
        """Look until it is seen: the compositor may show a change a few frames after the page has made it."""
        end = time.monotonic() + WAIT_S
        while not seen():
            if time.monotonic() > end:
                return False
        return True

    def key(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def tab_to(self, name: str) -> None:
        """Press Tab until the control of this name has the focus, as a reader without a mouse does."""
        for _ in range(20):
            self.key("Tab", 9)
            if self.value("document.activeElement.name || document.activeElement.classList[0]") == name:
                return
        raise AssertionError(f"Tab never reaches {name}")

    def screenshot(self) -> np.ndarray:
        """The whole page, RGB."""
        body = base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"])
        return cv2.cvtColor(cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element on the page."""
        found = self.value(
            f"(r => [r.left + scrollX, r.top + scrollY, r.width, r.height])"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        left, top, width, height = (float(side) for side in found)
        return left, top, width, height

    def shown_at(self, selector: str, x: float, y: float) -> np.ndarray:
        """Colour of the screenshot at a share of an element's width and height."""
        left, top, width, height = self.box(selector)
        return np.asarray(self.screenshot()[int(top + y * height), int(left + x * width)], np.int64)

    def shows(self, selector: str, x: float, y: float, *, colour: tuple[int, int, int]) -> bool:
        """Sooner or later that place has this colour."""
        return self.until(lambda: like(self.shown_at(selector, x, y), colour))

    def hides(self, selector: str, x: float, y: float, *, colour: tuple[int, int, int]) -> bool:
        """Sooner or later that place has another colour."""
        return self.until(lambda: not like(self.shown_at(selector, x, y), colour))

    def complaints(self) -> list[dict[str, Any]]:
        """Errors and warnings of the console, exceptions, and requests for anything but the page and its own data."""
        said = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        asked = [e for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        outside = [e for e in asked if not e["params"]["request"]["url"].startswith(("file://", "data:"))]
        files = [e for e in asked if e["params"]["request"]["url"].startswith("file://")]
        return [*[e for e in self.events if e.get("method") in said], *outside, *files[1:]]

    def close(self) -> None:
        """End it and all its children: they are a session of their own."""
        try:
            self.ask("Browser.close")
            self.process.wait(10)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.out)
        os.close(self.into)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is on the PATH")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def entry(*, verdict: Any = "manipulated", name: str = "found.jpg", shift: float = 0.0) -> Entry:
    """Red against blue, changed for certain in the middle ninth; the original is moved by ``shift`` of the width."""
    heat_RC = np.zeros((42, 56), np.float32)
    heat_RC[14:28, 18:37] = 1.0
    changed = Comparison(
        verdict=verdict,
        probabilities=Probabilities(benign=0.02, manipulated=0.97, distinct=0.01),
        heatmap=Heatmap(rows=42, cols=56, values=tuple(heat_RC.ravel().tolist())),
        regions=(Region(box=(18 / 56 * WIDTH, 100, 37 / 56 * WIDTH, 200), strength=1.0),),
        transform=((1.0, 0.0, -shift * WIDTH), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    )
    plain = Candidate(image_id="a", distance=0.1, refined_distance=0.1, match=40.0, metadata={"name": "original.jpg"})
    best = plain.model_copy(update={"comparison": changed, "probabilities": changed.probabilities})
    answer = Answer(
        query_id="id-1",
        verdict=verdict,
        confidence=0.97,
        original=best,
        candidates=(best, plain.model_copy(update={"image_id": "b"})),
        coverage=Coverage(complete=True, images_searched=527, images_total=527),
        used=Used(k=10, nprobe=0, reranked=1, exact=True),
        versions=Versions(seq=7, codec="exact", weights="feed"),
        timings_ms={"decode": 8.0, "encode": 48.0, "search": 31.0, "compare": 160.0, "total": 250.0},
    )
    red, blue = (np.full((HEIGHT, WIDTH, 3), colour, np.uint8) for colour in (RED, BLUE))
    return Entry(name=name, answer=answer, query_HWC=red, originals={"a": blue, "b": blue})


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(*entries: Entry, page: str | None = None) -> Path:
        path = tmp_path / "report & page.html"
        path.write_text(page or render(entries or [entry()], title="Where these come from"), encoding="utf-8")
        return path

    return written


def like(colour: np.ndarray, wanted: tuple[int, int, int]) -> bool:
    return int(np.abs(colour - np.array(wanted)).max()) < 24


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 390, 768, 1600])
def test_it_opens_silently_fetches_nothing_and_fits_any_window(
    browser: Browser, write: Write, width: int, dark: bool
) -> None:
    browser.open(write(entry(), entry(verdict="benign", name="x" * 300)), width=width, dark=dark)
    assert browser.complaints() == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    shot = browser.screenshot()
    assert shot.std() > 10
    ground = np.median(shot.reshape(-1, 3), axis=0).mean()
    assert ground < 60 if dark else ground > 200


def test_the_slider_shows_the_query_on_its_left_and_the_original_on_its_right(browser: Browser, write: Write) -> None:
    browser.open(write())
    split = browser.value("+document.querySelector('.split').value") / 100
    assert split > 37 / 56  # the first look shows the whole change
    assert browser.shows(".stage", split - 0.05, 0.1, colour=RED)
    assert browser.shows(".stage", split + 0.05, 0.1, colour=BLUE)
    browser.tab_to("split")
    browser.key("Home", 36)
    assert browser.shows(".stage", 0.05, 0.1, colour=BLUE)
    browser.key("End", 35)
    assert browser.shows(".stage", 0.95, 0.1, colour=RED)
    browser.key("ArrowLeft", 37)
    assert browser.value("document.querySelector('.split').value") == "99"
    assert browser.value("document.querySelector('.split').getAttribute('aria-valuetext')") == "99%"
    assert browser.complaints() == []


def test_the_line_follows_the_pointer(browser: Browser, write: Write) -> None:
    browser.open(write())
    left, top, width, height = browser.box(".stage")
    browser.ask("Runtime.evaluate", expression="scrollTo(0, 0)")
    for kind, share in (("mousePressed", 0.7), ("mouseMoved", 0.3), ("mouseReleased", 0.3)):
        where = {"x": left + share * width, "y": top + 0.5 * height}
        browser.ask("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **where)
    assert abs(int(browser.value("document.querySelector('.split').value")) - 30) <= 1
    assert browser.shows(".stage", 0.25, 0.1, colour=RED) and browser.shows(".stage", 0.35, 0.1, colour=BLUE)


def test_the_heatmap_fades_with_its_control_and_lies_on_what_changed_alone(browser: Browser, write: Write) -> None:
    browser.open(write())
    middle, beside = (0.5, 0.6), (0.2, 0.6)
    assert browser.hides(".stage", *middle, colour=RED) and browser.shows(".stage", *beside, colour=RED)
    browser.tab_to("heat")
    browser.key("End", 35)
    assert browser.shows(".stage", *middle, colour=(226, 0, 92))
    browser.key("Home", 36)
    assert browser.shows(".stage", *middle, colour=RED)
    assert browser.value("document.querySelector('output').value") == "0%"


def test_outlines_can_be_taken_away(browser: Browser, write: Write) -> None:
    browser.open(write())
    assert browser.shows(".stage", 18 / 56, 0.55, colour=(255, 255, 255))
    browser.tab_to("show-marks")
    browser.key(" ", 32)
    assert browser.hides(".stage", 18 / 56, 0.55, colour=(255, 255, 255))


def test_a_focused_control_can_be_seen(browser: Browser, write: Write) -> None:
    browser.open(write())
    for name in ("split", "heat", "show-marks", "apart"):
        before = browser.screenshot().astype(np.int64)
        browser.tab_to(name)
        assert browser.until(lambda old=before: changed(old, browser.screenshot()) > 60), name


def changed(before: np.ndarray, after: np.ndarray) -> int:
    """Pixels that differ plainly."""
    return int((np.abs(after.astype(np.int64) - before).max(-1) > 60).sum())


@pytest.mark.parametrize("how", ["asked", "no script", "paper"])
def test_side_by_side_on_demand_without_a_script_and_on_paper(browser: Browser, write: Write, how: str) -> None:
    browser.open(write(), script=how != "no script", media="print" if how == "paper" else "")
    if how == "asked":
        browser.tab_to("apart")
        browser.key(" ", 32)
    browser.ask("Emulation.setScriptExecutionDisabled", value=False)  # to look, not to run the page's own
    query, original = browser.box(".front"), browser.box(".back")
    assert query[0] + query[2] <= original[0] and query[1:] == pytest.approx(original[1:], abs=1)
    assert browser.shows(".front", 0.95, 0.1, colour=RED) and browser.shows(".back", 0.05, 0.1, colour=BLUE)
    assert browser.value("getComputedStyle(document.querySelector('.handle')).display") == "none"


def test_where_the_original_ends_nothing_is_shown_of_it(browser: Browser, write: Write) -> None:
    browser.open(write(entry(shift=0.25)))
    browser.tab_to("split")
    browser.key("Home", 36)
    assert browser.shows(".stage", 0.26, 0.1, colour=BLUE)
    assert browser.hides(".stage", 0.24, 0.1, colour=BLUE)
    assert browser.hides(".stage", 0.24, 0.1, colour=(128, 128, 128))  # the page's hatching, not a grey picture


def test_the_pages_own_policy_lets_no_other_script_run(browser: Browser, write: Write) -> None:
    page = render([entry()], title="t").replace("</main>", "<script>window.hit = 1</script><img src=x></main>")
    browser.open(write(page=page))
    assert browser.value("window.hit") is None
    refused = [event for event in browser.events if event.get("method") == "Log.entryAdded"]
    assert len(refused) >= 1 and browser.complaints() != []
    assert browser.value("document.documentElement.className") == "js"


GREEN = (30, 160, 60)


def spliced() -> Entry:
    """A red query, its left and its right part each from a green donor; no original."""
    donors = tuple(
        Donor(
            image_id=image_id,
            query_box=(left, 75, left + 100, 225),
            donor_box=(100, 75, 300, 225),
            distance=0.2,
            probability=probability,
            shown=True,
            metadata={"name": f"{image_id}.jpg"},
        )
        for image_id, left, probability in (("a", 40, 0.97), ("b", 260, 0.81))
    )
    answer = entry().answer.model_copy(update={"verdict": "spliced", "original": None, "donors": donors})
    red, green = (np.full((HEIGHT, WIDTH, 3), colour, np.uint8) for colour in (RED, GREEN))
    return Entry(name="spliced.jpg", answer=answer, query_HWC=red, originals={"a": green, "b": green})


def lit(browser: Browser) -> list[str]:
    """What is lit, by id."""
    found: list[str] = browser.value("[...document.querySelectorAll('[id].is-lit')].map(each => each.id).sort()")
    return found


@pytest.mark.parametrize("width", [320, 1600])
@pytest.mark.parametrize("dark", [False, True])
def test_donors_open_silently_and_fit(browser: Browser, write: Write, width: int, dark: bool) -> None:
    browser.open(write(spliced(), entry()), width=width, dark=dark)
    assert browser.complaints() == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.shows(".mosaic", 0.5, 0.5, colour=RED) and browser.shows(".donor-look", 0.5, 0.5, colour=GREEN)


def test_pointing_at_a_part_lights_its_donor_and_pointing_at_a_donor_its_part(browser: Browser, write: Write) -> None:
    browser.open(write(spliced()))
    browser.ask("Runtime.evaluate", expression="scrollTo(0, 0)")
    for selector in ("#a1-part-2", "#a1-donor-2"):
        left, top, width, height = browser.box(selector)
        browser.ask("Input.dispatchMouseEvent", type="mouseMoved", x=left + width / 2, y=top + height / 2)
        assert browser.until(lambda: lit(browser) == ["a1-donor-2", "a1-part-2"]), selector
        browser.ask("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
        assert browser.until(lambda: lit(browser) == []), selector


def test_the_focus_lights_both_and_is_seen_on_both(browser: Browser, write: Write) -> None:
    browser.open(write(spliced()))
    plain = browser.screenshot()
    browser.tab_to("part")
    assert lit(browser) == ["a1-donor-1", "a1-part-1"]
    for selector in ("#a1-part-1", "#a1-donor-1"):
        left, top, width, height = (int(side) for side in browser.box(selector))
        seen = np.s_[top : top + height, left : left + width]
        assert browser.until(lambda seen=seen: changed(plain[seen], browser.screenshot()[seen]) > 60), selector
    browser.tab_to("donor-link")
    assert lit(browser) == ["a1-donor-1", "a1-part-1"]
    browser.key("Tab", 9)
    assert lit(browser) == ["a1-donor-2", "a1-part-2"]


@pytest.mark.parametrize("how", ["no script", "paper"])
def test_numbers_alone_tie_parts_to_donors(browser: Browser, write: Write, how: str) -> None:
    browser.open(write(spliced()), script=how != "no script", media="print" if how == "paper" else "")
    browser.ask("Emulation.setScriptExecutionDisabled", value=False)  # to look, not to run the page's own
    for number in ("1", "2"):
        for selector in (f"#a1-part-{number} .pin", f"#a1-donor-{number} .pin"):
            assert browser.value(f"document.querySelector({selector!r}).innerText") == number
            assert min(browser.box(selector)[2:]) >= 16
    assert browser.value("getComputedStyle(document.querySelector('.hint')).display") == "none"
    if how == "no script":
        browser.value("document.querySelector('#a1-part-2').click()")
        assert browser.value("location.hash") == "#a1-donor-2"
        assert browser.until(lambda: browser.value("!!document.querySelector('#a1-donor-2:target')"))
