"""What a training config says, and the parts that a run is put together from.

A config names one network and holds its settings, the loop's and how many processes render ahead. Unknown keys are
refused, with the key's name, before anything is started.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from stemma.errors import BadRequest, Corrupt, NotFound
from stemma.networks import encoder as encoder_network
from stemma.networks import weights as weights_files
from stemma.networks.backbones import Lite0, lite0_keys
from stemma.vision.geometry import Picture
from training import comparator, data, detection, detector, encoder, hardest, loop, student
from training.comparator import ComparatorSettings, ComparatorStep
from training.data import Feed, PairData
from training.detector import DetectorStep, DetectorTraining
from training.encoder import EncoderStep, EncoderTraining
from training.groups import VIEWS, Group, GroupBatch, GroupData
from training.hardest import Row
from training.loop import LoopSettings, Step
from training.pairs import KINDS, Pair
from training.student import StudentStep, StudentTraining
from training.workers import Workers

CHECKOUT = Path(__file__).parent.parent / "configs" / "training"
LITE0_FILE = "efficientnet_lite0.safetensors"
SHIPPED = "shipped"
"""What ``--begin`` calls the weights that come with this version."""
VALIDATION_SEED = 7_000_003
"""Far from every training seed; what chooses a checkpoint is drawn once and for all."""
NETWORKS = ("comparator", "detector", "encoder", "student")
"""The sections of a config of which a run uses one."""
GROUPS_PER_BATCH = 7
"""Validation groups encoded together: the 49 photographs are seven such batches."""


class TrainingConfig(BaseModel):
    """One training run, whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: Literal["comparator", "detector", "encoder", "student"]
    comparator: ComparatorSettings = ComparatorSettings()
    detector: DetectorTraining = DetectorTraining()
    encoder: EncoderTraining = EncoderTraining()
    student: StudentTraining = StudentTraining()
    loop: LoopSettings = LoopSettings()
    render_processes: int = Field(1, ge=0, description="processes of each worker that render ahead; 0: none")
    validation_renders: int = Field(2, ge=1, description="renderings of each validation photograph and kind")


def default_path(network: str, size: str = "starter") -> Path:
    """The config that ships for a network: in an installed package beside its code, in a checkout under ``configs``."""
    installed = Path(__file__).parent / "configs" / size / f"{network}.yaml"
    return installed if installed.exists() else CHECKOUT / size / f"{network}.yaml"


def read(path: Path, overrides: Iterable[str] = ()) -> TrainingConfig:
    """The config of a YAML file with ``a.b=c`` overrides. Raises ``BadRequest`` naming the key that does not fit."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise BadRequest(f"the training config cannot be read: {error}", subject=str(path)) from error
    if not isinstance(tree, dict):
        raise BadRequest("a training config is a mapping", subject=str(path))
    for text in overrides:
        _override(tree, text)
    try:
        return TrainingConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"training config, {key!r}: {first['msg']}", subject=key) from error


def _override(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals:
        raise BadRequest(f"--set takes a.b=c, not {text!r}", subject=text)
    *path, last = key.strip().split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise BadRequest(f"{part!r} in {key!r} holds no further keys", subject=key)
    tree[last] = yaml.safe_load(value)


def describe(config: TrainingConfig) -> dict[str, Any]:
    """The config as plain data, as a run's folder keeps it: without the networks that it does not train, so that a
    run outlives what is added to them."""
    others = {name for name in NETWORKS if name != config.network}
    plain: dict[str, Any] = json.loads(config.model_dump_json(exclude=others))
    return plain


def steps(config: TrainingConfig) -> int:
    """Optimizer updates of a whole run."""
    return int(getattr(config, config.network).steps)


def items(config: TrainingConfig) -> tuple[int, str]:
    """(what a step is fed, its unit): pairs of the comparator, views of the encoder, pictures of the others."""
    batch = int(getattr(config, config.network).batch)
    if config.network == "encoder":
        batch *= VIEWS
    return batch, "pairs" if config.network == "comparator" else "images"


class Parts(Protocol):
    """What the loop needs of a network's training, on one worker."""

    @property
    def step(self) -> Step[Any]: ...

    @property
    def steps(self) -> int: ...

    def batches(self, first: int) -> Iterator[Any]:
        """This worker's batches from step ``first`` on."""

    def validate(self) -> dict[str, float]:
        """What chooses the checkpoint, by ``score``."""

    def begin(self, source: str) -> int:
        """Start a new run from other weights (``starting``); how many tensors fitted."""

    def hardest(self) -> list[Row]:
        """The validation cases, hardest first."""

    def close(self) -> None:
        """End what renders ahead."""


def parts(config: TrainingConfig, folder: Path, workers: Workers, *, device: str | torch.device = "cpu") -> Parts:
    """The parts of ``config``'s run. Raises ``NotFound`` where the development data lacks what it starts from."""
    if config.network == "comparator":
        return ComparatorParts(config, folder, workers, device)
    if config.network == "detector":
        return DetectorParts(config, folder, workers, device)
    if config.network == "student":
        return StudentParts(config, folder, workers, device)
    return EncoderParts(config, folder, workers, device)


class ComparatorParts:
    """The comparator's step over rendered pairs."""

    def __init__(
        self, config: TrainingConfig, folder: Path, workers: Workers, device: str | torch.device = "cpu"
    ) -> None:
        settings = config.comparator
        trunk = public_lite0(folder) if settings.size == "starter" else None
        self._config, self._workers, self._folder = config, workers, folder
        self.step = ComparatorStep(settings, comparator.build(settings, trunk), workers, device=device)
        self._data = PairData(data.training_photographs(folder), settings.pairs, seed=settings.seed)
        self._feed: Feed[Pair, data.Batch] | None = None
        self._validation: list[Pair] = []

    @property
    def steps(self) -> int:
        return self._config.comparator.steps

    def batches(self, first: int) -> Iterator[data.Batch]:
        self._feed = Feed(
            self._data,
            batch=self._config.comparator.batch,
            step=first,
            rank=self._workers.rank,
            world=self._workers.world,
            processes=self._config.render_processes,
        )
        return iter(self._feed)

    def validate(self) -> dict[str, float]:
        """Of the averaged weights, on pairs laid by the real aligner."""
        return comparator.validate(self.step.averaged, self._pairs())

    def hardest(self) -> list[Row]:
        return hardest.pairs(self.step.averaged, self._pairs())

    def _pairs(self) -> list[Pair]:
        if not self._validation:
            self._validation = validation_pairs(self._config, self._folder)
        return self._validation

    def begin(self, source: str) -> int:
        return self.step.begin(starting(source, self._config))

    def close(self) -> None:
        if self._feed is not None:
            self._feed.close()


def validation_pairs(config: TrainingConfig, folder: Path) -> list[Pair]:
    """Every kind of pair of every validation photograph, ``validation_renders`` times, the same in every run."""
    settings = config.comparator.pairs.model_copy(update={"aligned": 1.0})
    photographs = data.validation_photographs(folder)
    source = PairData(photographs, settings, seed=VALIDATION_SEED)
    count = config.validation_renders * len(photographs)
    return [source.sample(n, kind=kind) for n in range(count) for kind in KINDS]


class DetectorParts:
    """The detector's step over labelled photographs."""

    def __init__(
        self, config: TrainingConfig, folder: Path, workers: Workers, device: str | torch.device = "cpu"
    ) -> None:
        settings = config.detector
        trunk = public_lite0(folder) if settings.size == "starter" else None
        self._config, self._workers, self._folder = config, workers, folder
        self.step = DetectorStep(settings, detector.build(settings, trunk), workers, device=device)
        self._feed: Feed[detection.Sample, detection.Batch] | None = None
        self._validation: detection.Labelled | None = None

    @property
    def steps(self) -> int:
        return self._config.detector.steps

    def batches(self, first: int) -> Iterator[detection.Batch]:
        settings = self._config.detector
        self._feed = Feed(
            detection.training_data(
                self._folder, seed=settings.seed, side_px=settings.side_px, further=settings.further
            ),
            batch=settings.batch,
            step=first,
            rank=self._workers.rank,
            world=self._workers.world,
            processes=self._config.render_processes,
        )
        return iter(self._feed)

    def validate(self) -> dict[str, float]:
        return detector.validate(self.step.averaged, self._labelled(), self._config.detector.size)

    def hardest(self) -> list[Row]:
        return hardest.detections(self.step.averaged, self._labelled(), self._config.detector.size)

    def _labelled(self) -> detection.Labelled:
        if self._validation is None:
            self._validation = detection.validation_data(self._folder)
        return self._validation

    def begin(self, source: str) -> int:
        return self.step.begin(starting(source, self._config))

    def close(self) -> None:
        if self._feed is not None:
            self._feed.close()


class EncoderParts:
    """The retrieval encoder's step over groups of views; the starter goes on from the shipped weights."""

    def __init__(
        self, config: TrainingConfig, folder: Path, workers: Workers, device: str | torch.device = "cpu"
    ) -> None:
        settings = config.encoder
        network = encoder.build(settings)
        if settings.size == "starter":
            card, tensors = weights_files.read_tensors()
            encoder_network.fill(network, tensors, subject=card.name)
        self._config, self._workers, self._folder = config, workers, folder
        self.step = EncoderStep(settings, network, workers, device=device)
        self._data = GroupData(data.training_photographs(folder), seed=settings.seed, batch=settings.batch)
        self._feed: Feed[Group, GroupBatch] | None = None
        self._validation: list[GroupBatch] = []

    @property
    def steps(self) -> int:
        return self._config.encoder.steps

    def batches(self, first: int) -> Iterator[GroupBatch]:
        self._feed = Feed(
            self._data,
            batch=self._config.encoder.batch,
            step=first,
            rank=self._workers.rank,
            world=self._workers.world,
            processes=self._config.render_processes,
        )
        return iter(self._feed)

    def validate(self) -> dict[str, float]:
        return encoder.validate(self.step.network, self._groups())

    def hardest(self) -> list[Row]:
        return hardest.views(self.step.network, self._groups())

    def _groups(self) -> list[GroupBatch]:
        if not self._validation:
            self._validation = validation_groups(self._folder)
        return self._validation

    def begin(self, source: str) -> int:
        return self.step.begin(starting(source, self._config))

    def close(self) -> None:
        if self._feed is not None:
            self._feed.close()


class StudentParts:
    """A student's step over windows of photographs."""

    def __init__(
        self, config: TrainingConfig, folder: Path, workers: Workers, device: str | torch.device = "cpu"
    ) -> None:
        settings = config.student
        fixed, digests = student.frozen(settings)
        self._config, self._workers, self._folder = config, workers, folder
        self.step = StudentStep(settings, student.build(settings), fixed, workers, digests=digests, device=device)
        photographs = data.training_photographs(folder)
        self._data = student.StudentData(photographs, seed=settings.seed, side_px=settings.side_px)
        self._feed: Feed[Picture, Tensor] | None = None
        self._validation: list[Tensor] = []

    @property
    def steps(self) -> int:
        return self._config.student.steps

    def batches(self, first: int) -> Iterator[Tensor]:
        self._feed = Feed(
            self._data,
            batch=self._config.student.batch,
            step=first,
            rank=self._workers.rank,
            world=self._workers.world,
            processes=self._config.render_processes,
        )
        return iter(self._feed)

    def validate(self) -> dict[str, float]:
        if not self._validation:
            self._validation = student.validation_data(self._folder, self._config.student, VALIDATION_SEED)
        return student.validate(self.step.network, self.step.fixed, self._validation)

    def hardest(self) -> list[Row]:
        """None: nothing in a feature map is right or wrong to a person."""
        return []

    def begin(self, source: str) -> int:
        return self.step.begin(starting(source, self._config))

    def close(self) -> None:
        if self._feed is not None:
            self._feed.close()


def validation_groups(folder: Path) -> list[GroupBatch]:
    """Four views of every validation photograph, the same in every run."""
    photographs = data.validation_photographs(folder)
    source = GroupData(photographs, seed=VALIDATION_SEED, batch=min(GROUPS_PER_BATCH, len(photographs)))
    coming = source.batches(0)
    return [next(coming) for _ in range(len(photographs) // source.batch)]


def starting(source: str, config: TrainingConfig) -> dict[str, Tensor]:
    """The tensors that ``--begin`` names: ``shipped``, a safetensors file, or a checkpoint of another run.

    Raises ``NotFound`` for a file that is not there, ``Corrupt`` for one that cannot be read, and ``BadRequest`` for a
    checkpoint of the other network.
    """
    if source == SHIPPED:
        readers: dict[str, Callable[[], tuple[Any, weights_files.Tensors]]] = {
            "comparator": weights_files.read_comparator,
            "detector": weights_files.read_detector,
            "encoder": weights_files.read_tensors,
        }
        if config.network not in readers:
            raise NotFound(f"no {config.network} ships with this version; give a file", subject=source)
        return {name: torch.from_numpy(tensor) for name, tensor in readers[config.network]()[1].items()}
    path = Path(source)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return {name: tensor.float() for name, tensor in load(path.read_bytes()).items()}
        except FileNotFoundError as error:
            raise NotFound("there are no such weights to begin from", subject=source) from error
        except SafetensorError as error:
            raise Corrupt(f"the weights cannot be read: {error}", subject=source) from error
    state = loop.load(path)
    if state["config"]["network"] != config.network:
        raise BadRequest(f"this is a checkpoint of the {state['config']['network']}", subject=source)
    tensors: dict[str, Tensor] = state["step"].get("averaged", state["step"]["network"])
    return tensors


def public_lite0(folder: Path) -> Lite0:
    """EfficientNet-Lite0 with its public ImageNet weights, from the development data. Raises ``NotFound``."""
    from safetensors.torch import load

    path = folder / "weights" / LITE0_FILE
    try:
        theirs = load(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound("no public trunk; give the development data with --data", subject=str(path)) from error
    trunk = Lite0()
    missing, unexpected = trunk.load_state_dict({ours: theirs[key].float() for ours, key in lite0_keys()}, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    return trunk
