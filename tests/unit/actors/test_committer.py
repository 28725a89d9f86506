"""The committer without Ray: groups, bounds, and what an acknowledgement waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from actors import handles
from actors.ingest import Committer
from cluster import limits
from stemma.catalog import Catalog
from stemma.config import IngestSettings
from stemma.errors import Conflict, NotFound, Overloaded, Unavailable
from stemma.index.codec import Codec
from stemma.index.segment import segment_set


class FakeDirectory:
    """Confirms at once, or is down."""

    def __init__(self) -> None:
        self.announced: list[int] = []
        self.resealed = 0
        self.down = False

    async def announce(self, url: str, seq: int) -> bool:
        if self.down:
            raise Unavailable("the directory is down")
        self.announced.append(seq)
        return True

    async def reseal(self, url: str) -> None:
        self.resealed += 1


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> FakeDirectory:
    fake = FakeDirectory()
    monkeypatch.setattr(handles, "announce", fake.announce)
    monkeypatch.setattr(handles, "resealed", fake.reseal)
    return fake


@asynccontextmanager
async def committer(url: str, settings: Any) -> AsyncIterator[Committer]:
    made = Committer(url, settings)
    try:
        yield made
    finally:
        await made.close()


def play(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scene())


def test_writes_that_arrive_together_share_a_commit(
    collection: str, tree: Any, drafts: Any, directory: FakeDirectory
) -> None:
    async def scene() -> None:
        async with committer(collection, tree()) as writer:
            results = await asyncio.gather(*(writer.commit(drafts([number]), False) for number in range(70, 90)))
            assert {result.seq for result in results} == {4}
            assert [result.items[0].name for result in results] == [f"{number}.jpg" for number in range(70, 90)]
            assert directory.announced == [4]

    play(scene)


def test_each_caller_gets_its_own_part(collection: str, tree: Any, drafts: Any, directory: FakeDirectory) -> None:
    ids = [draft.image_id for draft in drafts(range(4))]

    async def scene() -> None:
        async with committer(collection, tree()) as writer:
            first, second = await asyncio.gather(writer.delete(ids[:2]), writer.delete([ids[2], "nobody"]))
            assert (first.deleted, first.missing) == (tuple(ids[:2]), ())
            assert (second.deleted, second.missing) == ((ids[2],), ("nobody",))
            again, new = await asyncio.gather(writer.commit(drafts([3]), False), writer.commit(drafts([91, 92]), False))
            assert [item.status for item in again.items] == ["duplicate"]
            assert [item.status for item in new.items] == ["stored", "stored"]

    play(scene)


def test_writes_keep_their_order(collection: str, tree: Any, drafts: Any, directory: FakeDirectory) -> None:
    mine = drafts([95])[0].image_id

    async def scene() -> None:
        async with committer(collection, tree()) as writer:
            stored, deleted, restored = await asyncio.gather(
                writer.commit(drafts([95]), False), writer.delete([mine]), writer.commit(drafts([95]), False)
            )
            assert stored.seq < deleted.seq < restored.seq
            assert deleted.deleted == (mine,) and restored.items[0].status == "stored"

    play(scene)


def test_one_that_cannot_be_stored_harms_no_other(
    collection: str, tree: Any, drafts: Any, directory: FakeDirectory
) -> None:
    from dataclasses import replace

    async def scene() -> None:
        async with committer(collection, tree()) as writer:
            alien = [replace(drafts([96])[0], weights="of another network")]
            bad, good = await asyncio.gather(
                writer.commit(alien, False), writer.commit(drafts([97]), False), return_exceptions=True
            )
            assert isinstance(bad, Conflict)
            assert not isinstance(good, BaseException) and good.count("stored") == 1

    play(scene)


def test_without_a_directory_an_acknowledgement_waits_until_no_host_can_be_stale(
    collection: str, tree: Any, drafts: Any, directory: FakeDirectory
) -> None:
    directory.down = True

    async def scene() -> None:
        async with committer(collection, tree(announce_ms=600.0, heartbeat_ms=100.0)) as writer:
            begun = asyncio.get_running_loop().time()
            result = await writer.commit(drafts([98]), False)
            assert result.count("stored") == 1
            assert asyncio.get_running_loop().time() - begun >= 0.6

    play(scene)


def test_a_full_queue_refuses(
    collection: str, tree: Any, drafts: Any, directory: FakeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WRITES_QUEUED_MAX", 3)

    async def scene() -> None:
        async with committer(collection, tree()) as writer:
            results = await asyncio.gather(
                *(writer.commit(drafts([number]), False) for number in range(70, 76)), return_exceptions=True
            )
            refused = [each for each in results if isinstance(each, Overloaded)]
            assert len(refused) == 3 and all(each.retry_after_s for each in refused)

    play(scene)


def test_only_one_process_writes(collection: str, tree: Any, directory: FakeDirectory) -> None:
    async def scene() -> None:
        with Catalog.open(collection, write=True):
            writer = Committer(collection, tree())
            with pytest.raises(Conflict):
                await writer.seq()
        async with committer(collection, tree()) as writer:
            assert await writer.seq() == 3

    play(scene)


def test_no_collection(tmp_path: Any, tree: Any, directory: FakeDirectory) -> None:
    async def scene() -> None:
        with pytest.raises(NotFound):
            await Committer(str(tmp_path / "none"), tree()).seq()

    play(scene)


def test_a_full_tail_is_sealed_behind_and_told(
    collection: str, tree: Any, drafts: Any, directory: FakeDirectory
) -> None:
    async def scene() -> None:
        async with committer(collection, tree(tail_rows_max=50)) as writer:
            await writer.commit(drafts([99]), False)
        assert directory.resealed == 1

    play(scene)
    from pathlib import Path

    assert [(unit.row_lo, unit.row_hi) for unit in segment_set(Path(collection), Codec.unquantized())] == [(0, 56)]


def test_many_small_commits_are_compacted_into_few_files(
    collection: str, tree: Any, drafts: Any, directory: FakeDirectory
) -> None:
    settings = tree().model_copy(update={"ingest": IngestSettings(fragments_max=8, group_commit_ms=0)})

    async def scene() -> None:
        async with committer(collection, settings) as writer:
            for number in range(70, 84):
                await writer.commit(drafts([number]), False)
        with Catalog.open(collection) as reader:
            assert reader.fragments <= 9
            assert {f"{number}.jpg" for number in range(70, 84)} <= set(
                reader.read(reader.snapshot().row_R, ["source"])["source"]
            )

    play(scene)


def test_a_disk_that_refuses_costs_one_write_and_nothing_after_it(
    collection: str, tree: Any, drafts: Any, directory: FakeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Catalog, *_: Any, **__: Any) -> None:
        self._broken = "OSError: no space left"
        raise OSError(28, "no space left on device")

    async def scene() -> None:
        async with committer(collection, tree()) as writer:
            await writer.seq()
            with monkeypatch.context() as patch:
                patch.setattr(Catalog, "commit", full)
                with pytest.raises(Unavailable, match="no space left") as refusal:
                    await writer.commit(drafts([70]), False)
                assert refusal.value.retry_after_s
            assert (await writer.commit(drafts([70]), False)).count("stored") == 1

    play(scene)


def test_a_caller_that_left_does_not_take_the_worker_with_it(
    collection: str, tree: Any, drafts: Any, directory: FakeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Catalog, *_: Any, **__: Any) -> None:
        raise Conflict("not now")

    async def scene() -> None:
        async with committer(collection, tree()) as writer:
            with monkeypatch.context() as patch:
                patch.setattr(Catalog, "commit", refuse)
                leaving = asyncio.create_task(writer.commit(drafts([70]), False))
                await asyncio.sleep(0)
                leaving.cancel()
                with pytest.raises(Conflict):
                    await writer.commit(drafts([71]), False)
            async with asyncio.timeout(20):
                assert (await writer.commit(drafts([72]), False)).count("stored") == 1

    play(scene)
