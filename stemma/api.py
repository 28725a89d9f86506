"""The contract's types, version 1: what a caller sends and what it gets back.

Frames: pixels are of the query after EXIF rotation, origin at the top left corner, pixel centres at .5.
Boxes are ``[x0, y0, x1, y1]``. Times are ``_ms``, sizes ``_bytes``. Distances are squared L2 of unit embeddings
(0 the same, 4 opposite), so smaller is nearer.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Verdict = Literal["identical", "benign", "manipulated", "inconclusive", "spliced", "unknown"]
ItemStatus = Literal["stored", "duplicate", "replaced", "rejected"]
Metadata = dict[str, Any]


class Wire(BaseModel):
    """A frozen value of the contract; unknown fields are refused, so that a typo is never silently dropped."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Ask(Wire):
    """How one picture is asked about. ``None`` means the collection's own setting."""

    k: int | None = Field(None, description="candidates to return, 1 to limits.k_max")
    nprobe: int | None = Field(None, description="inverted lists to probe at least; ignored by an exact search")
    rerank: int | None = Field(None, description="candidates that the comparator sees")
    donors: int | None = Field(None, description="donors to return, 0 to limits.donors_max")
    filter: str | None = Field(None, description="a condition over declared metadata columns")
    min_version: int | None = Field(None, description="the answer must have seen this seq")
    as_of: int | None = Field(None, description="search the collection as it was at this seq")
    deadline_ms: float | None = Field(None, description="time given to the whole answer")


class Region(Wire):
    """A changed area, in pixels of the query."""

    box: tuple[float, float, float, float]
    strength: float = Field(description="mean probability inside, 0 to 1")


class Heatmap(Wire):
    """Probability of manipulation over the query, row-major, long side 56, 0 outside the overlap."""

    rows: int
    cols: int
    values: tuple[float, ...]


class Probabilities(Wire):
    benign: float
    manipulated: float
    distinct: float


class Comparison(Wire):
    """Query against one original, everything in the query's frame."""

    verdict: Verdict
    probabilities: Probabilities | None = None
    heatmap: Heatmap | None = None
    regions: tuple[Region, ...] = ()
    transform: tuple[tuple[float, float, float], ...] | None = Field(
        None,
        description="3 x 3 row-major, query pixels to working-copy pixels, flip included; null when nothing aligned",
    )
    mirrored: bool = False


class Candidate(Wire):
    """One original that may be where the query comes from."""

    image_id: str
    distance: float = Field(description="of the code in the index (equals refined_distance when the search was exact)")
    refined_distance: float = Field(description="of the stored embedding; candidates before verification order by it")
    match: float | None = Field(None, description="local verification score, larger is surer; null where not verified")
    probabilities: Probabilities | None = None
    metadata: Metadata = {}
    comparison: Comparison | None = None


class Donor(Wire):
    """An original that gave an object to the query, or the found original itself, at another place (a clone)."""

    image_id: str
    query_box: tuple[float, float, float, float] = Field(description="whole pixels of the query")
    donor_box: tuple[float, float, float, float] = Field(description="pixels of the donor's working copy")
    distance: float = Field(description="of the two objects' embeddings")
    probability: float = Field(description="calibrated, that the donor is the right one")
    mask: str | None = Field(
        None, description="PNG of the size of query_box, 8-bit grey, base64; 255 where the query shows the donor"
    )
    shown: bool = Field(description="false: too unsure to be shown to a person, or to decide the verdict")
    clone: bool = Field(False, description="true: the object is from another place of the found original itself")
    metadata: Metadata = {}


class Coverage(Wire):
    """What was searched of what is there. A partial answer says so here, and nowhere else silently."""

    complete: bool
    images_searched: int
    images_total: int
    missing_hosts: tuple[str, ...] = ()


class Used(Wire):
    """The settings that the answer was made with."""

    k: int
    nprobe: int
    reranked: int
    exact: bool
    filter: str | None = None


class Versions(Wire):
    seq: int
    codec: str
    weights: str


class Answer(Wire):
    """Where a picture comes from."""

    query_id: str
    verdict: Verdict
    confidence: float = Field(description="calibrated probability that the verdict is right; 1 for identical")
    original: Candidate | None = Field(description="null unless identical or an original was found")
    candidates: tuple[Candidate, ...]
    donors: tuple[Donor, ...] = ()
    coverage: Coverage
    used: Used
    versions: Versions
    notes: tuple[str, ...] = ()
    timings_ms: dict[str, float] = {}


class ImageRecord(Wire):
    """One original as the catalog holds it (without its pixels)."""

    image_id: str
    sha256: str
    width: int = Field(description="pixels, after EXIF rotation")
    height: int
    seq: int = Field(description="the commit that stored it")
    source: str
    metadata: Metadata = {}


class Problem(Wire):
    """Why one item of a batch was refused: the same code and sentence that a single request would get."""

    code: str
    detail: str


class IngestItem(Wire):
    """What became of one picture of an ingest."""

    name: str
    image_id: str | None
    status: ItemStatus
    error: Problem | None = None


class IngestResult(Wire):
    """Returned after the synced commit. ``seq`` is that of the last commit of the request."""

    seq: int
    items: tuple[IngestItem, ...]

    def count(self, status: ItemStatus) -> int:
        """How many items ended so."""
        return sum(item.status == status for item in self.items)


class DeleteResult(Wire):
    seq: int
    deleted: tuple[str, ...]
    missing: tuple[str, ...] = ()


class HostStatus(Wire):
    """One shard host, as the directory sees it."""

    host: str
    state: Literal["live", "suspect", "dead", "loading"]
    images: int = Field(description="live images in the units that it serves")
    seq: int = Field(description="the commit up to which it has read")


class CollectionStatus(Wire):
    """One served collection."""

    name: str
    images: int
    seq: int
    weights: str
    columns: dict[str, str] = {}
    hosts: tuple[HostStatus, ...] = ()
    notes: tuple[str, ...] = ()


class Status(Wire):
    """A server and what it serves."""

    version: str
    ready: bool
    uptime_s: float
    working: int = Field(description="requests worked on now")
    waiting: int = Field(description="requests inside that wait for a place at work or still send their body")
    collections: tuple[CollectionStatus, ...]
