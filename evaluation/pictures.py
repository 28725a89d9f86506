"""What the demo's collection is made of: photographs that our own dependencies carry, and rendered distractors.

scikit-image 0.26.0 and scikit-learn ship these files inside their packages, so nothing is fetched. Left out are what is
no natural photograph (drawings, phantoms, a colour wheel, an animation, a phase image), pages of text, and
``motorcycle_right``, which is ``motorcycle_left`` seen from a hand's breadth further.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from evaluation.scenes import SCENES, STRANGE
from stemma.errors import NotFound
from stemma.flow import Bytes3
from stemma.terminal import progress

SEED = 20_210_625
SIDES_PX = (320, 512)
"""Range of the longer side of a rendered picture."""
RATIOS = (1.0, 0.8, 0.75, 2 / 3, 0.5625)
JPEG_QUALITY = 92
DISTRACTORS = 510
"""With the photographs more than 515 images in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Photograph:
    """A picture file inside an installed package, and whose it is."""

    package: str
    file: str
    credit: str

    def path(self) -> Path:
        """Where it lies. Raises ``NotFound`` when the package is not installed or does not carry it."""
        spec = importlib.util.find_spec(self.package)
        folder = {"skimage": "data", "sklearn": "datasets/images"}[self.package]
        path = Path(spec.origin).parent / folder / self.file if spec and spec.origin else None
        if path is None or not path.is_file():
            raise NotFound(
                f"{self.package} does not carry {self.file}; `pip install 'stemma[demo]'` brings it",
                subject=self.file,
            )
        return path


def _skimage(file: str, credit: str) -> Photograph:
    return Photograph(package="skimage", file=file, credit=credit)


PHOTOGRAPHS: tuple[Photograph, ...] = (
    _skimage("astronaut.png", "NASA, no known copyright restrictions"),
    _skimage("brick.png", "CC0, CC0Textures"),
    _skimage("camera.png", "CC0, Lav Varshney"),
    _skimage("chelsea.png", "CC0, Stefan van der Walt"),
    _skimage("clock_motion.png", "public domain, Stefan van der Walt"),
    _skimage("coffee.png", "CC0, Rachel Michetti"),
    _skimage("coins.png", "Brooklyn Museum, no known copyright restrictions"),
    _skimage("grass.png", "CC0, linolafett"),
    _skimage("gravel.png", "CC0, CC0Textures"),
    _skimage("hubble_deep_field.jpg", "NASA, public domain"),
    _skimage("ihc.png", "CMMI, no known copyright restrictions"),
    _skimage("moon.png", "NASA, no known copyright restrictions"),
    _skimage("motorcycle_left.png", "Middlebury 2014 stereo data"),
    _skimage("retina.jpg", "CC0, Mikael Häggström"),
    _skimage("rocket.jpg", "public domain, SpaceX"),
    Photograph(package="sklearn", file="china.jpg", credit="CC BY 2.0, danielbuechele"),
    Photograph(package="sklearn", file="flower.jpg", credit="CC BY 2.0, vultilion"),
)
STRANGERS: tuple[Photograph, ...] = (
    # Photographs too, but no natural ones: two pages and a close-up of an eye's vessels.
    _skimage("page.png", "scikit-image"),
    _skimage("text.png", "public domain, Wikipedia"),
    _skimage("microaneurysms.png", "CC0, Andreas Maier"),
)


def render(seed: int, number: int, kinds: Sequence[str] = tuple(SCENES)) -> Bytes3:
    """Rendered picture ``number`` of a seed, uint8 [H, W, 3]: ``kinds`` take turns, so neighbours differ in kind."""
    rng = np.random.default_rng([seed, number])
    # Sides are multiples of 16: Fourier transforms of other lengths cost up to three times as much.
    longer, ratio = 16 * int(rng.integers(SIDES_PX[0] // 16, SIDES_PX[1] // 16 + 1)), float(rng.choice(RATIOS))
    shorter = 16 * round(longer * ratio / 16)
    height, width = (shorter, longer) if rng.random() < 0.75 else (longer, shorter)
    picture = {**SCENES, **STRANGE}[kinds[number % len(kinds)]](height, width, rng)
    return _photographed(picture, rng)


def _photographed(picture: np.ndarray, rng: np.random.Generator) -> Bytes3:
    """What a camera does to a scene: a little blur, a darker rim, its own contrast, grain."""
    height, width = picture.shape[:2]
    blurred = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), float(rng.uniform(0.3, 1.1)))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    rim = 1 - rng.uniform(0, 0.35) * (x**2 + y**2) / 2
    graded = np.clip(blurred * rim[..., None], 0, 1) ** rng.uniform(0.7, 1.3)
    grain = rng.normal(0, rng.uniform(0.004, 0.03), (height, width, 1))
    levels: Bytes3 = (np.clip(graded + grain, 0, 1) * 255).round().astype(np.uint8)
    return levels


def jpeg(rgb_HWC: Bytes3, quality: int = JPEG_QUALITY) -> bytes:
    """The picture as JPEG with full chroma."""
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    done, body = cv2.imencode(".jpg", rgb_HWC[..., ::-1], options)
    assert done
    return bytes(body)


def write_collection(folder: Path) -> Path:
    """The photographs and the distractors as files; those that are there already are kept, all others removed."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = list(SCENES)
    rendered = {f"rendered-{n:04d}-{kinds[n % len(kinds)]}.jpg": n for n in range(DISTRACTORS)}
    wanted = {photograph.file for photograph in PHOTOGRAPHS} | set(rendered)
    for stale in folder.iterdir():
        if stale.name not in wanted and stale.is_file():
            stale.unlink()
    for photograph in PHOTOGRAPHS:
        shutil.copyfile(photograph.path(), folder / photograph.file)

    def write(name: str) -> None:
        if not (folder / name).exists():
            partial = folder / f".{name}.partial"
            partial.write_bytes(jpeg(render(SEED, rendered[name])))
            partial.rename(folder / name)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool, progress("render distractors", len(rendered)) as done:
        for _ in pool.map(write, rendered):
            done(1)
    return folder
