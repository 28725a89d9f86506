"""Which codec a collection is searched with: by its size, its settings, and what it brings of its own."""

from __future__ import annotations

from pathlib import Path

from stemma.config import Settings
from stemma.errors import NotFound
from stemma.index.codec import Codec
from stemma.index.segment import segment_set
from stemma.networks.weights import CODEC_FOLDER, codec_folder


def codec_wanted(settings: Settings, root: Path, images: int) -> Codec:
    """The codec for this many images: exact up to ``search.exact_images_max``, then ``opq``, unless settings name one.

    The collection's own codec (``stemma train codec --collection``) goes before the one that ships with the weights.
    One for objects goes with it where there is one; without it, objects are searched exactly. Raises ``NotFound`` where
    neither is there.
    """
    kind = settings.search.codec
    if kind == "auto":
        kind = "exact" if images <= settings.search.exact_images_max else "opq"
    if kind == "exact":
        return Codec.unquantized()
    return Codec.load(_folder(kind, settings, root), _for_objects(settings, root))


def _folder(kind: str, settings: Settings, root: Path) -> Path:
    own = root / CODEC_FOLDER / kind
    return own if own.is_dir() else codec_folder(kind, settings.encoder.weights)


def _for_objects(settings: Settings, root: Path) -> Codec | None:
    try:
        return Codec.load(_folder("objects", settings, root))
    except NotFound:
        return None


def codec_of(settings: Settings, root: Path, images: int) -> Codec:
    """The codec to search with now. A collection that has outgrown exact search keeps it until the first segment of
    its new codec is there: until then all of it would be tail."""
    codec = codec_wanted(settings, root, images)
    exact = Codec.unquantized()
    outgrown = settings.search.codec == "auto" and not codec.exact
    return exact if outgrown and not segment_set(root, codec) and segment_set(root, exact) else codec
