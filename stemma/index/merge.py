"""Many hosts' replies to one query become one shortlist: the same for every split of the collection over hosts.

The rule (docs/decisions/0002): duplicates collapse; hits of codes are cut to the shortlist by (distance, image_id),
over all hosts, *before* they meet the exact ones; then all are put in order by (refined_distance, image_id) and cut
once more.
Pure: nothing but numpy and ``stemma.flow``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stemma.flow import Found, Hit, HostReply, ObjectHit

LIVE_PER_SHORTLIST = 10
"""A codec search goes on to further lists until it has scanned this many live rows for each hit it must return."""

AnyHit = TypeVar("AnyHit", bound=Hit)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """What all replies say together."""

    hits: tuple[Hit, ...]
    """At most ``shortlist``, by (refined_distance, image_id)."""
    images_searched: int
    images_total: int
    seq: int
    """The commit that every reply has read at least."""
    nprobe: int
    """Lists that every reply probed at least; 0 when the search was exact."""
    nprobe_needed: int | None
    """Ask all hosts once more with this many lists: too few live rows were scanned. None: the answer stands."""
    codec: str
    without_objects: int = 0
    """See ``HostReply``."""


def merge(replies: Mapping[str, HostReply], shortlist: int) -> MergeResult:
    """The shortlist of all ``replies`` (by host); no reply at all is an empty answer that searched nothing.

    Hosts may have read up to different commits. The count of images is that of the latest one; rows that an older host
    still counts are not counted beyond it.
    """
    if shortlist < 1:
        raise ValueError(f"a shortlist holds at least one image, not {shortlist}")
    answers = [replies[host] for host in sorted(replies)]
    if not answers:
        return MergeResult(hits=(), images_searched=0, images_total=0, seq=0, nprobe=0, nprobe_needed=None, codec="")
    latest = max(answers, key=lambda reply: (reply.seq, reply.images_total))
    return MergeResult(
        hits=cut(_one_per_image(answers), shortlist),
        images_searched=min(sum(reply.images_searched for reply in answers), latest.images_total),
        images_total=latest.images_total,
        seq=min(reply.seq for reply in answers),
        nprobe=min(reply.nprobe for reply in answers),
        nprobe_needed=_nprobe_needed(answers, shortlist),
        codec="+".join(sorted({reply.codec for reply in answers})),
        without_objects=sum(reply.without_objects for reply in answers),
    )


def donors(found: Found, images: int) -> tuple[ObjectHit, ...]:
    """The last cut of a search by objects: the ``images`` nearest images by (D, image_id), D that of eq. 7.

    A ``Found`` holds more of them, since images are many to a code.
    """
    hits = [hit for hit in found.hits if isinstance(hit, ObjectHit)]
    assert len(hits) == len(found.hits), "these were found by objects"
    return tuple(replace(hit, distance=hit.refined_distance) for hit in in_order(hits)[:images])


def cut(hits: Iterable[AnyHit], shortlist: int) -> tuple[AnyHit, ...]:
    """The one cut of the system: codes by (distance, image_id) first, then all by (refined_distance, image_id)."""
    by_kind: tuple[list[AnyHit], list[AnyHit]] = ([], [])
    for hit in hits:
        by_kind[hit.coded].append(hit)
    exact, coded = by_kind
    coded.sort(key=lambda hit: (hit.distance, hit.image_id))
    return tuple(in_order([*exact, *coded[:shortlist]])[:shortlist])


def in_order(hits: Iterable[AnyHit]) -> list[AnyHit]:
    return sorted(hits, key=lambda hit: (hit.refined_distance, hit.image_id))


def lists_needed(live_by_rank: NDArray[np.int64], nprobe: int, shortlist: int) -> int:
    """Smallest p >= ``nprobe`` whose first p ranks hold ``LIVE_PER_SHORTLIST`` x shortlist live rows; else all."""
    rank_count = len(live_by_rank)
    if nprobe <= 0 or nprobe >= rank_count:
        return rank_count
    enough = np.searchsorted(np.cumsum(live_by_rank), LIVE_PER_SHORTLIST * shortlist) + 1
    return min(max(nprobe, int(enough)), rank_count)


def _nprobe_needed(answers: Sequence[HostReply], shortlist: int) -> int | None:
    coded = [reply for reply in answers if reply.live_by_rank is not None]
    needed = 0
    for codec in {reply.codec for reply in coded}:
        peers = [reply for reply in coded if reply.codec == codec]
        live = np.sum([reply.live_by_rank for reply in peers if reply.live_by_rank is not None], axis=0)
        wanted = lists_needed(live, min(reply.nprobe for reply in peers), shortlist)
        if any(reply.nprobe < wanted for reply in peers):
            needed = max(needed, wanted)
    return needed or None


def _one_per_image(answers: Sequence[HostReply]) -> list[Hit]:
    """One hit per row (an exact one before a coded one); the newest row per image where hosts are a commit apart."""
    by_row: dict[int, Hit] = {}
    for hit in (hit for reply in answers for hit in reply.hits):
        known = by_row.get(hit.row)
        if known is None or (known.coded and not hit.coded):
            by_row[hit.row] = hit
    by_image: dict[str, Hit] = {}
    for row in sorted(by_row):
        by_image[by_row[row].image_id] = by_row[row]
    return list(by_image.values())
