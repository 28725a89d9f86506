"""Training data: photographs on disk, numbered samples made from them, batches, and processes that render ahead.

Sample ``t`` of worker ``rank`` among ``world`` is the sample numbered ``t * world + rank``, a pure function of the seed
and that number. So a global batch is the same samples however many workers share it, and a resumed run goes on with the
sample it would have drawn.
"""

from __future__ import annotations

import json
import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from stemma.errors import NotFound
from stemma.vision.geometry import Picture
from training import pairs, split
from training.pairs import Kind, Pair, PairSettings

S = TypeVar("S")
B_co = TypeVar("B_co", covariant=True)

STRANGERS = 3
"""Other photographs that one sample may take donors and strangers from."""


class Photographs:
    """Photographs, kept as files' bytes and decoded when asked. A corrupt one is skipped, counted and named."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._bodies = [_read(folder / name) for name in names]
        self.skipped: dict[str, str] = {}
        """Name -> why."""

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Picture:
        """uint8 RGB of photograph ``index``, or of the next one that can be read.

        Raises ``ValueError`` when none can.
        """
        for step in range(len(self._names)):
            place = (index + step) % len(self._names)
            picture = self._decode(place)
            if picture is not None:
                return picture
        raise ValueError(f"none of {len(self._names)} photographs can be read; the first is {self._names[:1]}")

    def _decode(self, place: int) -> Picture | None:
        name, body = self._names[place], self._bodies[place]
        if name in self.skipped:
            return None
        bgr_HWC = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR) if body else None
        if bgr_HWC is None or min(bgr_HWC.shape[:2]) < 32:
            self.skipped[name] = "missing or empty" if not body else "not a picture of 32 px or more"
            return None
        return np.asarray(cv2.cvtColor(bgr_HWC, cv2.COLOR_BGR2RGB), np.uint8)


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def training_photographs(data: Path) -> Photographs:
    """The 501 of ``training/split.json`` that may be trained on."""
    return Photographs(data / "photos" / "train", split.load().train)


def further_photographs(data: Path) -> tuple[str, ...]:
    """Files of the unedited pictures of ``tamper/train`` whose licence is clear and that are in no part of ``photos``.

    None is a near-duplicate of a photograph that calibrates, validates or is held out, nor of one in ``tamper/val``
    (63-bit DCT hash, within 12 bits). Raises ``NotFound`` where there are none.
    """
    path = data / "tamper" / "index.json"
    if not path.is_file():
        raise NotFound("there are no edited pairs here; give the development data with --data", subject=str(path))
    pairs = json.loads(path.read_text(encoding="utf-8"))["pairs"]
    own = [p for p in pairs if p["split"] == "train" and p["licence_clear"] and not p.get("host_also_in_photos")]
    return tuple(f"tamper/{pair['dir']}/original.jpg" for pair in own)


def gathered_photographs(folder: Path, data: Path) -> tuple[str, ...]:
    """Paths of the photographs in ``folder`` (``*.jpg``), in alphabetical order, but those near to one that calibrates,
    validates, is held out or is in ``tamper/val`` (63-bit DCT hash, upright or mirrored, within 12 bits).

    Raises ``NotFound`` where there are none.
    """
    paths = sorted(folder.glob("*.jpg"))
    if not paths:
        raise NotFound("there are no photographs (*.jpg) in the folder of further ones", subject=str(folder))
    photos = data / "photos"
    kept_apart = [
        *(photos / "train" / name for name in split.load().calibrate),
        *(path for part in ("val", "heldout") for path in sorted((photos / part).glob("*.jpg"))),
        *sorted((data / "tamper" / "val").glob("*/*.jpg")),
    ]
    signs_NB = np.stack([split.hash_file(path)[0] for path in paths]).astype(np.float32) * 2 - 1
    theirs_MB = np.concatenate([split.hash_file(path) for path in kept_apart]).astype(np.float32) * 2 - 1
    near_N = (split.HASH_BITS - signs_NB @ theirs_MB.T).min(1) / 2 <= split.HASH_DISTANCE_MAX
    return tuple(str(path.resolve()) for path, near in zip(paths, near_N, strict=True) if not near)


def validation_photographs(data: Path) -> Photographs:
    """The 49 that choose checkpoints."""
    folder = data / "photos" / "val"
    return Photographs(folder, sorted(path.name for path in folder.glob("*.jpg")))


def number(t: int, *, rank: int, world: int) -> int:
    """The sample that worker ``rank`` draws as its ``t``-th. Raises ``ValueError`` for a rank that does not exist."""
    if not 0 <= rank < world or t < 0:
        raise ValueError(f"rank {rank} of {world} workers has no sample {t}")
    return t * world + rank


class Numbered(Protocol[S, B_co]):
    """Samples by number, and the batch that some of them make."""

    def sample(self, n: int) -> S: ...

    def collate(self, samples: Sequence[S]) -> B_co: ...

    def numbers(self, step: int, *, batch: int, rank: int, world: int) -> list[int]:
        """The samples of one worker's share of the global batch ``step``; raises ``ValueError`` if there is none."""


class PairData:
    """Numbered pairs of the comparator."""

    def __init__(self, photographs: Photographs, settings: PairSettings, *, seed: int) -> None:
        self.photographs, self.settings, self.seed = photographs, settings, seed

    def sample(self, n: int, *, kind: Kind | None = None) -> Pair:
        """Sample ``n``; each epoch visits every photograph once, in an order of its own."""
        count = len(self.photographs)
        epoch, place = divmod(n, count)
        order_N = np.random.default_rng([self.seed, 1, epoch]).permutation(count)
        rng = np.random.default_rng([self.seed, 2, n])
        others = [int(order_N[(place + step) % count]) for step in rng.integers(1, max(2, count), STRANGERS)]
        original_HWC = self.photographs[int(order_N[place])]
        strangers = [self.photographs[index] for index in others]
        return pairs.render(original_HWC, strangers, rng, self.settings, kind=kind)

    def collate(self, samples: Sequence[Pair]) -> Batch:
        return collate(samples)

    def numbers(self, step: int, *, batch: int, rank: int, world: int) -> list[int]:
        return numbers(step, batch=batch, rank=rank, world=world)


class Batch(NamedTuple):
    """B pairs as the comparator takes them: pictures 0..255, maps 0..1, float32."""

    query_B3HW: Tensor
    original_B3HW: Tensor
    valid_B1HW: Tensor
    mask_B1HW: Tensor
    counted_B1HW: Tensor
    label_B: Tensor


def collate(samples: Sequence[Pair]) -> Batch:
    """The batch of some pairs, in order."""

    def stack(name: str) -> Tensor:
        stacked = torch.from_numpy(np.stack([getattr(one, name) for one in samples]))
        if stacked.ndim == 3:
            return stacked[:, None].float() / 255
        return stacked.permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last)

    return Batch(
        query_B3HW=stack("query_HWC"),
        original_B3HW=stack("original_HWC"),
        valid_B1HW=stack("valid_HW"),
        mask_B1HW=stack("mask_HW"),
        counted_B1HW=stack("counted_HW"),
        label_B=torch.tensor([one.label for one in samples]),
    )


def numbers(step: int, *, batch: int, rank: int, world: int) -> list[int]:
    """The samples of one worker's share of the global batch ``step``. Raises ``ValueError`` if it cannot be shared."""
    if batch % world:
        raise ValueError(f"a global batch of {batch} cannot be shared by {world} workers")
    share = batch // world
    return [number(step * share + i, rank=rank, world=world) for i in range(share)]


class Feed(Generic[S, B_co]):
    """Batches in order from ``step`` on, rendered ahead by child processes (0: in this one)."""

    def __init__(
        self,
        data: Numbered[S, B_co],
        *,
        batch: int,
        step: int = 0,
        rank: int = 0,
        world: int = 1,
        processes: int = 0,
    ) -> None:
        self._data, self._batch, self._rank, self._world = data, batch, rank, world
        self._step = step
        self._ahead: deque[list[Future[S]]] = deque()
        self._pool: ProcessPoolExecutor | None = None
        if processes:
            self._pool = ProcessPoolExecutor(
                processes, multiprocessing.get_context("spawn"), initializer=_become, initargs=(data,)
            )
            self._depth = 2 + processes

    def __iter__(self) -> Iterator[B_co]:
        while True:
            yield self._next()

    def _next(self) -> B_co:
        if self._pool is None:
            samples = [self._data.sample(n) for n in self._numbers(self._step)]
        else:
            while len(self._ahead) < self._depth:
                coming = self._numbers(self._step + len(self._ahead))
                self._ahead.append([self._pool.submit(_sample, n) for n in coming])
            samples = [one.result() for one in self._ahead.popleft()]
        self._step += 1
        return self._data.collate(samples)

    def _numbers(self, step: int) -> list[int]:
        return self._data.numbers(step, batch=self._batch, rank=self._rank, world=self._world)

    def close(self) -> None:
        """End the child processes; what they were rendering is dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


_RENDERER: list[Numbered[Any, Any]] = []


def _become(data: Numbered[Any, Any]) -> None:
    """A child renders for one training run, on one thread."""
    cv2.setNumThreads(1)
    _RENDERER[:] = [data]


def _sample(n: int) -> Any:
    return _RENDERER[0].sample(n)
