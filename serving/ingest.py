"""The way of an upload: parts to drafts, good ones committed together, every other one listed with its reason."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

from serving.bodies import Form, Upload, json_objects
from serving.served import Served
from stemma.api import IngestItem, IngestResult, Metadata
from stemma.catalog import Draft
from stemma.catalog.schema import validate_image_id, validate_metadata
from stemma.errors import BadRequest, StemmaError
from stemma.ingest import prepare, rejected

JOB = "upload"
AHEAD = 8  # pictures of one request that are decoded or encoded at once; more would only hold memory


async def ingest(served: Served, form: Form, *, replace: bool) -> IngestResult:
    """Store the ``file`` parts of ``form``: one synced commit of all that are good, an item for each.

    Raises ``BadRequest`` for a request that cannot be meant as a whole; what is wrong with one picture is in its item.
    """
    files = form.files
    if not files:
        raise BadRequest("the body has no part called `file`", subject="file")
    parts = list(zip(files, image_ids(form), json_objects(form.one("metadata"), len(files)), strict=True))
    turn = asyncio.Semaphore(AHEAD)
    outcomes = await asyncio.gather(*(_prepare(served, *part, turn) for part in parts))
    drafts = [outcome for outcome in outcomes if isinstance(outcome, Draft)]
    if not drafts:
        return IngestResult(seq=await served.originals.seq(), items=tuple(_items(outcomes, ())))
    result = await served.originals.commit(drafts, replace=replace)
    return IngestResult(seq=result.seq, items=tuple(_items(outcomes, result.items)))


def image_ids(form: Form) -> Sequence[str | None]:
    """One id for every file, in order; an empty one means the hex SHA-256. Raises ``BadRequest``."""
    ids = form.texts("image_id")
    if ids and len(ids) != len(form.files):
        raise BadRequest(f"{len(ids)} image_id part(s) for {len(form.files)} file(s)", subject="image_id")
    return [image_id or None for image_id in ids] or [None] * len(form.files)


async def _prepare(
    served: Served, file: Upload, image_id: str | None, metadata: Metadata, turn: asyncio.Semaphore
) -> Draft | IngestItem:
    limits = served.engine.settings.limits
    finder = served.engine.finder if served.engine.settings.objects.ingest else None
    try:
        if file.error is not None:
            raise file.error
        if image_id is not None:
            validate_image_id(image_id, limits)
        validate_metadata(metadata, limits)
        async with turn:
            there = await served.originals.find_sha256(hashlib.sha256(file.body).hexdigest())
            if there is not None and image_id in (None, there.image_id):
                return IngestItem(name=file.name, image_id=there.image_id, status="duplicate")
            return await prepare(
                file.body,
                name=file.name,
                image_id=image_id,
                metadata=metadata,
                job=JOB,
                decoder=served.engine.decoder,
                encoder=served.engine.encoder,
                finder=finder,
            )
    except StemmaError as error:
        if (
            error.status >= 500 or error.status == 429
        ):  # nothing is wrong with the picture: the whole request may come again
            raise
        return rejected(file.name, image_id, error)


def _items(outcomes: Sequence[Draft | IngestItem], committed: Sequence[IngestItem]) -> Sequence[IngestItem]:
    stored = iter(committed)
    return [next(stored) if isinstance(outcome, Draft) else outcome for outcome in outcomes]
