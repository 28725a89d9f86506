"""What becomes of each draft of a commit: pure decisions, no disk.

The rules of identity, first match: an id that may not be one or metadata that does not fit: rejected. Same id and same
bytes: duplicate. Same id, other bytes: rejected as a conflict, or with ``replace`` stored in its place. Another id with
the same bytes: duplicate of the first, named. Else stored. The same rules hold inside one batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from stemma.api import IngestItem, Metadata, Problem
from stemma.catalog.encoding import Numbered
from stemma.catalog.schema import (
    ColumnType,
    Draft,
    infer_columns,
    split_metadata,
    validate_image_id,
    validate_metadata,
)
from stemma.config import LimitSettings
from stemma.errors import BadRequest, Conflict, StemmaError


@dataclass(frozen=True, slots=True)
class Plan:
    """Drafts to store, numbered, and the report of all of them in their order."""

    stored: tuple[Numbered, ...]
    items: tuple[IngestItem, ...]
    new_columns: dict[str, ColumnType]


@dataclass(frozen=True, slots=True)
class Known:
    """The live images that the drafts of a batch might meet."""

    sha_by_id: Mapping[str, str]
    ids_by_sha: Mapping[str, Sequence[str]]
    """In row order; several only after a replace by bytes that another image has."""


class MadeBy(NamedTuple):
    """Digests of the weights that made what is stored; None: nothing is yet."""

    weights: str | None
    objects_weights: str | None


def made_by(drafts: Sequence[Draft], held: MadeBy, url: str) -> MadeBy:
    """Whose vectors and objects the collection holds with these drafts. Raises Conflict where that would be two."""
    return MadeBy(
        _one({draft.weights for draft in drafts}, held.weights, "vectors", url),
        _one({draft.objects_weights for draft in drafts} - {None}, held.objects_weights, "objects", url),
    )


def _one(brought: Set[str | None], held: str | None, what: str, url: str) -> str | None:
    found = sorted(one for one in {*brought, held} if one is not None)
    if len(found) > 1:
        kept = held or found[0]
        others = ", ".join(one for one in found if one != kept)
        raise Conflict(
            f"the collection holds {what} of weights {kept}, the drafts bring {others}; move it over with "
            "stemma ingest --reencode, or ingest into a new collection",
            subject=url,
        )
    return found[0] if found else None


def plan(
    drafts: Sequence[Draft],
    known: Known,
    *,
    replace: bool,
    columns: Mapping[str, ColumnType],
    infer: bool,
    next_row: int,
    limits: LimitSettings,
) -> Plan:
    """Decide on every draft. ``infer``: no metadata column exists yet and none were declared."""
    refused = {at: error for at, draft in enumerate(drafts) if (error := _refusal(draft, limits)) is not None}
    new_columns = infer_columns(_metadata_seen(drafts, refused, known)) if infer else {}
    columns = {**columns, **new_columns}
    sha_by_id = dict(known.sha_by_id)
    ids_by_sha = {sha: list(ids) for sha, ids in known.ids_by_sha.items()}
    stored: list[Numbered] = []
    items: list[IngestItem] = []
    for at, draft in enumerate(drafts):
        image_id = draft.image_id if draft.image_id is not None else draft.sha256
        if at in refused:
            items.append(_rejected(draft, None, refused[at]))
            continue
        held = sha_by_id.get(image_id)
        if held == draft.sha256 or (held is None and ids_by_sha.get(draft.sha256)):
            same = image_id if held is not None else ids_by_sha[draft.sha256][0]
            items.append(IngestItem(name=draft.name, image_id=same, status="duplicate"))
            continue
        try:
            if held is not None and not replace:
                raise Conflict(f"{image_id!r} is stored with other bytes; pass replace to change it", subject=image_id)
            typed, extra = split_metadata(draft.metadata, columns)
        except StemmaError as error:
            items.append(_rejected(draft, image_id if error.code == "conflict" else None, error))
            continue
        if held is not None:
            ids_by_sha[held].remove(image_id)
        sha_by_id[image_id] = draft.sha256
        ids_by_sha.setdefault(draft.sha256, []).append(image_id)
        stored.append(Numbered(next_row + len(stored), image_id, draft, typed, extra))
        items.append(
            IngestItem(name=draft.name, image_id=image_id, status="replaced" if held is not None else "stored")
        )
    return Plan(tuple(stored), tuple(items), new_columns if stored else {})


def _refusal(draft: Draft, limits: LimitSettings) -> BadRequest | None:
    try:
        if draft.image_id is not None:
            validate_image_id(draft.image_id, limits)
        validate_metadata(draft.metadata, limits)
    except BadRequest as error:
        return error
    return None


def _metadata_seen(drafts: Sequence[Draft], refused: Mapping[int, BadRequest], known: Known) -> list[Metadata]:
    """Metadata that columns are inferred from: not of what is refused, nor of what is there already."""
    return [d.metadata for at, d in enumerate(drafts) if at not in refused and d.sha256 not in known.ids_by_sha]


def _rejected(draft: Draft, image_id: str | None, error: StemmaError) -> IngestItem:
    return IngestItem(
        name=draft.name, image_id=image_id, status="rejected", error=Problem(code=error.code, detail=error.detail)
    )
