"""The further photographs that what ships was trained on, gathered again: a folder for ``further``.

    python -m training.gather --repositories DIR --out FOLDER

``training/further.json`` names each photograph, its licence, and where it was found: a public repository, the path and
the git blob in it. DIR holds clones, bare or not, as ``owner/name``; what is not there is counted and named. They are
Open Images (by their ids), and photographs whose repository credits each with its licence; what YOLOX-nano saw nothing
on was left out, and what is near to a photograph that calibrates, validates or is held out (63-bit DCT hash, within 14
bits, or cosine of Lite0's features from .8 on). Some come out a row of pixels larger or smaller than those trained on.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from stemma.terminal import progress

INDEX_FILE = Path(__file__).with_name("further.json")
SIDE_PX_MAX = 512
JPEG_QUALITY = 90
ORIGIN = "training/further.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A photograph and where it was found."""

    file: str
    """Name that it is stored under."""
    source: str
    licence: str
    repository: str
    path: str
    blob: str
    """Git's id of its bytes."""


def listed(path: Path = INDEX_FILE) -> tuple[Found, ...]:
    """The photographs of an index, in alphabetical order of their files."""
    table = json.loads(path.read_text(encoding="utf-8"))
    return tuple(Found(**dict(zip(table["columns"], row, strict=True))) for row in table["rows"])


def told(folder: Path | None) -> str:
    """What a card says of a folder of further photographs: how many they are, and of which origin."""
    return "" if folder is None else f", and {len(_names(folder)):,} further photographs ({_origin(folder)})"


def licences(folder: Path | None) -> tuple[str, ...]:
    """What a card says of their licences."""
    if folder is None:
        return ()
    known = "CC BY, CC BY-SA, CC0 or in the public domain" if _origin(folder) == ORIGIN else "known to whose they are"
    return (f"further photographs: {known} ({_origin(folder)})",)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.jpg")}


def _origin(folder: Path) -> str:
    return ORIGIN if _names(folder) <= {one.file for one in listed()} else "a folder of one's own"


def gather(one: Found, repositories: Path, out: Path) -> bool:
    """Write one photograph, at most ``SIDE_PX_MAX`` at its longest side; False where no clone holds it."""
    body = blob(repositories / one.repository, one.blob)
    if body is None:
        return False
    with Image.open(io.BytesIO(body)) as image:
        rgb = image.convert("RGB")
    rgb.thumbnail((SIDE_PX_MAX, SIDE_PX_MAX), Image.Resampling.LANCZOS)
    rgb.save(out / one.file, quality=JPEG_QUALITY)
    return True


def blob(repository: Path, name: str) -> bytes | None:
    """The bytes of a blob of a clone; None where there is no such clone, or it does not hold them."""
    if not repository.is_dir():
        return None
    shown = subprocess.run(["git", "-C", str(repository), "cat-file", "blob", name], capture_output=True, check=False)
    return shown.stdout if shown.returncode == 0 else None


def main() -> int:
    parser = argparse.ArgumentParser(description="Gather the further photographs of training/further.json.")
    parser.add_argument("--repositories", type=Path, required=True, help="clones, as owner/name")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found, missing = listed(), Counter[str]()
    args.out.mkdir(parents=True, exist_ok=True)
    with progress("gather", len(found)) as moved:
        for one in found:
            missing[one.repository] += not gather(one, args.repositories, args.out)
            moved(1)
    for repository, count in sorted((+missing).items()):
        print(f"{count} not found in {repository}")
    print(f"{len(found) - missing.total()} of {len(found)} photographs in {args.out}")
    return 0 if not missing.total() else 1


if __name__ == "__main__":
    raise SystemExit(main())
