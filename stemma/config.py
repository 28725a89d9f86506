"""One tree of settings: defaults here, a YAML file, ``STEMMA_SECTION__KEY`` variables, ``--set a.b=c``; the later wins.

Unknown keys are refused with the nearest known one. Every bound of the system is a named field below, its unit last.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from stemma.errors import BadRequest

MIB = 1024 * 1024


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DecodeSettings(Section):
    """Hostile input stops here: what a picture may be, and what a decoding child may use."""

    formats: tuple[Literal["JPEG", "PNG", "WEBP", "GIF", "TIFF"], ...] = Field(
        ("JPEG", "PNG", "WEBP", "GIF"),
        description="formats that are decoded; TIFF is off by default; all others are refused",
    )
    image_bytes_max: int = Field(20 * MIB, ge=1, description="one uploaded picture")
    pixels_max: int = Field(50_000_000, ge=1, description="width x height, read from the header before decoding")
    side_px_max: int = Field(16_384, ge=1, description="longer side")
    side_px_min: int = Field(32, ge=1, description="shorter side")
    ancillary_bytes_max: int = Field(MIB, ge=1, description="EXIF, ICC, XMP and text together")
    working_side_px: int = Field(512, ge=64, description="long side of the working copy")
    cpu_s_max: int = Field(5, ge=1, description="CPU time for one picture")
    wall_s_max: float = Field(10.0, gt=0, description="wall time for one picture")
    memory_bytes_max: int = Field(1024 * MIB, ge=128 * MIB, description="address space of a child")
    files_max: int = Field(64, ge=8, description="open files of a child")
    children_per_core: int = Field(2, ge=1, description="decoding children per core")
    respawn_after: int = Field(500, ge=1, description="pictures after which a child is replaced")
    queue_s_max: float = Field(30.0, gt=0, description="wait for a free child, after which the caller is overloaded")


class LimitSettings(Section):
    """What one request may ask for."""

    batch_bytes_max: int = Field(64 * MIB, ge=1, description="body of one ingest request")
    batch_items_max: int = Field(1_000, ge=1, description="pictures in one ingest request")
    image_id_bytes_max: int = Field(512, ge=1, description="UTF-8, no control characters")
    metadata_bytes_max: int = Field(16 * 1024, ge=2, description="JSON of one picture's metadata")
    metadata_depth_max: int = Field(8, ge=1, description="nesting of metadata")
    metadata_keys_max: int = Field(64, ge=1, description="keys of one picture's metadata")
    metadata_key_bytes_max: int = Field(128, ge=1, description="one key")
    filter_bytes_max: int = Field(1024, ge=1, description="a filter's text")
    filter_depth_max: int = Field(16, ge=1, description="nesting of a filter")
    k_max: int = Field(100, ge=1, description="candidates returned")
    nprobe_max: int = Field(4096, ge=1, description="inverted lists probed")
    donors_max: int = Field(20, ge=0, description="donors returned")
    rerank_max: int = Field(100, ge=0, description="candidates compared")
    deadline_ms_max: float = Field(60_000, gt=0, description="longest time a search may be given")
    queries_per_call_max: int = Field(64, ge=1, description="queries in one call to a host")
    body_read_s_max: float = Field(30.0, gt=0, description="time to send a body")


class SearchSettings(Section):
    """How a collection is searched and how its index is kept."""

    k: int = Field(10, ge=1, description="candidates returned when the caller does not say")
    shortlist: int = Field(100, ge=1, description="nearest images that verification orders")
    nprobe: int = Field(10, ge=1, description="inverted lists probed at least")
    deadline_ms: float = Field(5_000, gt=0, description="time for one answer")
    codec: Literal["auto", "exact", "opq", "paper"] = Field(
        "auto", description="auto: exact up to exact_images_max, then opq"
    )
    exact_images_max: int = Field(100_000, ge=1, description="images up to which search is exact")
    tail_rows_max: int = Field(
        8_192, ge=1, description="unsealed rows, searched exactly; more are sealed into a segment"
    )
    tail_block_rows: int = Field(1_024, ge=1, description="unsealed rows that are placed on a host together")
    merge_fanin: int = Field(8, ge=2, description="segments of one size that merge into one")
    segment_rows_max: int = Field(8_000_000, ge=1, description="rows of a segment that merges no further")
    dead_share_max: float = Field(
        0.2, gt=0, le=1, description="share of deleted rows above which a segment is rewritten"
    )
    filter_cache_max: int = Field(32, ge=1, description="evaluated filters that a host keeps")


class IngestSettings(Section):
    batch_images: int = Field(64, ge=1, description="pictures of one commit")
    group_commit_ms: float = Field(5.0, ge=0, description="time that single uploads wait to share a commit")
    fragments_max: int = Field(256, ge=8, description="data files of a catalog; more are compacted into few")
    folder_images_max: int = Field(10_000_000, ge=1, description="files of one folder ingest")


class EncoderSettings(Section):
    size: Literal["starter", "paper"] = Field("starter", description="which networks")
    weights: str | None = Field(None, description="folder of weights; null: those shipped")
    device: str = Field("cpu", description="cpu or cuda")
    replicas: int = Field(1, ge=1, description="encoder replicas on Serve")
    gpus_per_replica: float = Field(0.0, ge=0, description="num_gpus of one replica")
    batch_images_max: int = Field(16, ge=1, description="pictures encoded in one call")


class ComparatorSettings(Section):
    """The comparator that re-ranks a shortlist and shows what was changed."""

    size: Literal["starter", "paper"] = Field("starter", description="which networks")
    weights: str | None = Field(None, description="folder of weights; null: those shipped")
    device: str = Field("cpu", description="cpu or cuda")
    replicas: int = Field(1, ge=1, description="comparator replicas on Serve")
    gpus_per_replica: float = Field(0.0, ge=0, description="num_gpus of one replica")
    batch_pairs_max: int = Field(4, ge=1, description="candidates compared before the next are decided on")
    rerank: int = Field(8, ge=0, description="candidates compared at most, when the caller does not say")
    flow: bool = Field(True, description="align by optical flow where nothing cheaper fits")


class ObjectSettings(Section):
    """What finds and embeds the objects of a picture."""

    size: Literal["starter", "paper"] = Field("starter", description="which networks")
    weights: str | None = Field(None, description="folder of weights; null: those shipped")
    device: str = Field("cpu", description="cpu or cuda")
    objects_max: int = Field(
        32, ge=1, le=32, description="objects kept of one picture at most, besides the whole of it"
    )
    ingest: bool = Field(True, description="store the objects of every picture; without them it is no donor")
    donors: int = Field(3, ge=0, description="donors returned when the caller does not say; 0: none are searched for")
    replicas: int = Field(1, ge=1, description="replicas on Serve of what finds and verifies objects")
    gpus_per_replica: float = Field(0.0, ge=0, description="num_gpus of one replica")


class ClusterSettings(Section):
    """Timing and copies of the Ray cluster. Ray notices a lost node after 14 s; these deadlines are ours."""

    address: str | None = Field(None, description="a running Ray cluster to join; null: start Ray on this machine")
    copies: int = Field(1, ge=1, le=8, description="hosts that serve each segment (R)")
    heartbeat_ms: float = Field(500, gt=0, description="between two health checks of a host")
    suspect_after_ms: float = Field(1_500, gt=0, description="silence after which a host is not asked first")
    dead_after_ms: float = Field(4_000, gt=0, description="silence after which its segments move")
    announce_ms: float = Field(
        2_000, gt=0, description="time a host has to read a new commit before it is routed around"
    )
    write_ms: float = Field(30_000, gt=0, description="time a commit may take before its caller is told to ask again")
    host_deadline_ms: float = Field(
        2_000, gt=0, description="time one host has for one call, within the query's own deadline"
    )
    hedge_quantile: float = Field(0.95, gt=0, lt=1, description="latency quantile after which a second copy is asked")
    hedge_ms_min: float = Field(20, ge=0, description="never hedge earlier")
    breaker_failures: int = Field(3, ge=1, description="failures in a row that open a host's breaker")
    breaker_open_ms: float = Field(2_000, gt=0, description="time a breaker stays open before one trial call")
    stale_retries_max: int = Field(2, ge=0, description="re-asks of a query after a routing change")
    batches_in_flight_max: int = Field(4, ge=1, description="concurrent calls to one host from one asker")
    threads_per_host: int = Field(1, ge=1, description="search threads of a shard actor")


class ServeSettings(Section):
    host: str = Field("127.0.0.1", description="address HTTP listens on")
    port: int = Field(8000, ge=1, le=65535, description="HTTP port")
    gateways: int = Field(1, ge=1, description="gateway replicas")
    concurrency: int = Field(16, ge=1, description="requests one gateway works on at once")
    queue_per_concurrency: int = Field(
        2, ge=0, description="waiting requests per working one; more get 503 and Retry-After"
    )
    retry_after_s_max: float = Field(30.0, ge=1, description="upper end of the jittered Retry-After")
    header_bytes_max: int = Field(16 * 1024, ge=1024, description="request headers; also one header of a part")
    part_headers_max: int = Field(8, ge=1, description="headers of one part of an upload")


class Settings(BaseSettings):
    """The whole tree; print it with ``stemma status --config``."""

    model_config = SettingsConfigDict(env_prefix="STEMMA_", env_nested_delimiter="__", frozen=True, extra="forbid")

    decode: DecodeSettings = DecodeSettings()
    limits: LimitSettings = LimitSettings()
    search: SearchSettings = SearchSettings()
    ingest: IngestSettings = IngestSettings()
    encoder: EncoderSettings = EncoderSettings()
    comparator: ComparatorSettings = ComparatorSettings()
    objects: ObjectSettings = ObjectSettings()
    cluster: ClusterSettings = ClusterSettings()
    serve: ServeSettings = ServeSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the library calls this by keyword
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # A YAML file comes in as init arguments, so variables must win over them; --set is merged last, in load().
        return env_settings, init_settings


def load(path: str | Path | None = None, overrides: Iterable[str] = ()) -> Settings:
    """The settings from an optional YAML file, the environment and ``a.b=c`` overrides, the later the stronger.

    Raises ``BadRequest`` naming the key that is unknown (with the nearest known one) or the value that does not fit.
    """
    tree = _read_yaml(Path(path)) if path is not None else {}
    try:
        base = Settings(**tree)
        changed = _merge(base.model_dump(), _parse_overrides(overrides))
        # The environment has had its say in `base`; validating plain data keeps it from overruling --set.
        sections: dict[str, Any] = {name: _section(name, value) for name, value in changed.items()}
        return Settings.model_construct(None, **sections)
    except ValidationError as error:
        raise _refusal(error) from error


def known_keys() -> dict[str, str]:
    """Every setting as ``section.key`` with its description."""
    return {
        f"{name}.{key}": field.description or ""
        for name, section in Settings.model_fields.items()
        for key, field in _model(section.annotation).model_fields.items()
    }


def _model(annotation: Any) -> type[BaseModel]:
    assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation


def _section(name: str, value: Any) -> BaseModel:
    if name not in Settings.model_fields:
        raise _unknown(name)
    try:
        return _model(Settings.model_fields[name].annotation).model_validate(value)
    except ValidationError as error:
        raise _refusal(error, prefix=name) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise BadRequest(f"the configuration cannot be read: {error}", subject=str(path)) from error
    if not isinstance(tree, dict | None):
        raise BadRequest("a configuration is a mapping of sections", subject=str(path))
    return tree or {}


def _parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        section, dot, name = key.strip().partition(".")
        if not (equals and dot and name):
            raise BadRequest(f"--set takes section.key=value, not {text!r}", subject=text)
        if f"{section}.{name}" not in known_keys():
            raise _unknown(f"{section}.{name}")
        try:
            tree.setdefault(section, {})[name] = json.loads(value)
        except json.JSONDecodeError:
            tree.setdefault(section, {})[name] = value
    return tree


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    return {key: {**base.get(key, {}), **over.get(key, {})} for key in {**base, **over}}


def _unknown(key: str) -> BadRequest:
    known = [*known_keys(), *Settings.model_fields]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return BadRequest(f"unknown setting {key!r}{hint}", subject=key)


def _refusal(error: ValidationError, prefix: str = "") -> BadRequest:
    first = error.errors()[0]
    key = ".".join([*([prefix] if prefix else []), *(str(part) for part in first["loc"])])
    if first["type"] == "extra_forbidden":
        return _unknown(key)
    return BadRequest(f"setting {key!r}: {first['msg']}", subject=key)
