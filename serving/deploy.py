"""Ray and Serve around the gateway: ``serve_up`` starts all that serves some collections, ``serve_down`` ends it.

One deployment takes HTTP and drives everything; encoder, comparator and finder are three others. No further hops: with
the default proxy a chain of three costs 19 ms (docs/facts.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve

from serving.comparator import comparator_app
from serving.encoder import encoder_app
from serving.engine import (
    ServedComparator,
    ServedDecoder,
    ServedEncoder,
    ServedFinder,
    ServedOriginals,
    ServedShards,
)
from serving.gateway import build_app
from serving.objects import finder_app
from serving.served import Served
from stemma.catalog import Catalog
from stemma.config import MIB, Settings
from stemma.errors import Conflict, Unavailable
from stemma.finder import card_for, weights_for
from stemma.networks.weights import card, comparator_card
from stemma.query import Engine

APP = "stemma"
ONGOING_MAX = 1024
"""Requests inside one gateway replica. Far above its places, so that a refusal is ours (a problem document) and not the
proxy's; what waits here holds no body."""
SHUTDOWN_S = 2.0


@serve.ingress()
class Gateway:
    """A replica of the gateway: opens the catalogs, connects to the hosts, and answers HTTP."""

    def __init__(
        self, collections: Mapping[str, str], settings: Settings, encoder: Any, comparator: Any, finder: Any = None
    ) -> None:
        self._settings = settings
        parts = ServedDecoder(settings.decode), ServedEncoder(encoder), ServedComparator(comparator)
        served = None if finder is None else served_finder(finder, settings)
        self._served = {name: connect(name, url, settings, *parts, served) for name, url in collections.items()}

    def __serve_build_asgi_app__(self) -> Any:
        return build_app(self._served, self._settings, proxy_echoes=True)


def served_finder(handle: Any, settings: Settings) -> ServedFinder | None:
    """The finder behind a handle; None where the weights bring no objects."""
    chosen = settings.objects, settings.encoder.weights
    known, made_by = card_for(*chosen), weights_for(*chosen)
    return None if known is None or made_by is None else ServedFinder(handle, known, made_by)


def connect(
    name: str,
    url: str,
    settings: Settings,
    decoder: ServedDecoder,
    encoder: ServedEncoder,
    comparator: ServedComparator,
    finder: ServedFinder | None = None,
) -> Served:
    """One collection whose actors run, as this process reads and asks it."""
    from actors.handles import connect as connect_actors

    known = card(settings.encoder.weights)
    catalog = Catalog.open(url)
    hosts, writer = connect_actors(url, settings)
    shards = ServedShards(catalog, hosts, settings)
    return Served(
        name=name,
        engine=Engine(
            decoder=decoder,
            encoder=encoder,
            shards=shards,
            comparator=comparator,
            card=known,
            comparator_card=comparator_card(settings.comparator.weights),
            settings=settings,
            finder=finder,
        ),
        originals=ServedOriginals(name, catalog, shards, writer, known.digest),
    )


def check_weights(collections: Mapping[str, str], settings: Settings) -> None:
    """Create what is not there yet; raise ``Conflict`` for a collection that other weights have made."""
    digest = card(settings.encoder.weights).digest
    for url in collections.values():
        if not (Path(url) / "catalog.lance").is_dir():
            Catalog.create(url).close()
        made_by = Catalog.open(url).weights
        if made_by not in (None, digest):
            raise Conflict(f"made by weights {made_by}, served with {digest}: give encoder.weights", subject=url)


def serve_up(collections: Mapping[str, str], settings: Settings) -> None:
    """Start actors, networks and gateway on the Ray that this process is connected to; returns when they are deployed.

    Raises ``Conflict`` for other weights or a collection that another process writes.
    """
    from actors.launch import launch

    check_weights(collections, settings)
    for url in collections.values():
        launch(url, settings)
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": settings.serve.host, "port": settings.serve.port, "request_timeout_s": None},
    )
    deployment = serve.deployment(
        name="gateway",
        num_replicas=settings.serve.gateways,
        max_ongoing_requests=ONGOING_MAX,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=SHUTDOWN_S,
        graceful_shutdown_wait_loop_s=0.1,
        max_surge_percent=100,
    )
    networks = [encoder_app(settings.encoder), comparator_app(settings.comparator)]
    if card_for(settings.objects, settings.encoder.weights) is not None:
        networks.append(finder_app(settings))
    app = deployment(Gateway).bind(dict(collections), settings, *networks)
    serve.run(app, name=APP, route_prefix="/")


def serve_down(collections: Mapping[str, str], settings: Settings) -> None:
    """End what ``serve_up`` started. Ray itself goes on, and so do other apps of Serve on a cluster that was joined."""
    from actors.launch import land

    if settings.cluster.address is None:
        serve.shutdown()
    else:
        serve.delete(APP)
    for url in collections.values():
        land(url)


@contextmanager
def local_nodes(count: int) -> Iterator[None]:
    """A Ray of ``count`` nodes on this machine, for benchmarks. The environment as for ``start_ray``."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 4, "object_store_memory": 128 * MIB, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        for _ in range(count - 1):
            cluster.add_node(num_cpus=4, object_store_memory=128 * MIB)
        ray.init(address=cluster.address, log_to_driver=False, namespace=APP, configure_logging=False)
        yield
    finally:
        stop_ray()
        cluster.shutdown()


def stop_ray() -> None:
    """End this process's connection, and the Ray that it started."""
    ray.shutdown()


def start_ray(address: str | None = None) -> None:
    """A Ray for this machine, or the running cluster at ``address``. Its environment (``serving.run.environment``) must
    be that of this process already: Ray reads it when it is imported. Raises ``Unavailable`` when none answers there.
    """
    if address is None:
        # without "local" Ray joins whatever cluster it finds on the machine, and refuses num_cpus there
        own = {"address": "local", "num_cpus": max(8, os.cpu_count() or 1), "include_dashboard": False}
    else:
        own = {"address": address}
    try:
        ray.init(**own, log_to_driver=False, namespace=APP, configure_logging=False)
    except ConnectionError as error:
        raise Unavailable(f"no Ray cluster answers at {address}: {error}", subject="cluster.address") from error
