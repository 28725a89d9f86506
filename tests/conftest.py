"""One Ray for the whole run, started when the first test asks for it and ended with the session."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MIB = 1024 * 1024
SYSTEM = {  # docs/facts.md, section 1: a lost node is noticed after some 7 s instead of 14; tighter kills busy nodes
    "health_check_period_ms": 1_000,
    "health_check_failure_threshold": 5,
    "health_check_timeout_ms": 2_000,
    "health_check_initial_delay_ms": 5_000,
}
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # set explicitly: left out, Ray writes a token into the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
    "RAY_worker_niceness": "0",  # at nice 15 anything else on the machine starves the actors
}


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """A ``ray.cluster_utils.Cluster`` of one node that this process is connected to. Tests may add nodes; they must
    take them away again."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 8, "object_store_memory": 150 * MIB, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "_system_config": SYSTEM})
    ray.init(address=cluster.address, log_to_driver=False, namespace="stemma", configure_logging=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


class Server:
    """One collection served over HTTP on the session's Ray, as ``stemma up`` does it."""

    def __init__(self, url: str, folder: str, settings: Any) -> None:
        self.url, self.folder, self.settings = url, folder, settings

    def pids(self, title: str) -> list[int]:
        """Processes of Ray workers whose title begins so, e.g. ``ray::ServeReplica:stemma:gateway``."""
        found = []
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if process.read_bytes().startswith(title.encode()):
                    found.append(int(process.parent.name))
        return found


@pytest.fixture(scope="session")
def server(ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The one Serve app of the whole run: few places and short times, so that limits can be met."""
    from serving.deploy import serve_down, serve_up
    from stemma.config import load

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = load(
        overrides=[
            f"serve.port={port}",
            "serve.concurrency=2",
            "serve.queue_per_concurrency=1",
            "serve.retry_after_s_max=3",
            "limits.body_read_s_max=3",
            "search.deadline_ms=20000",  # the machine of a test run is busy
            "cluster.host_deadline_ms=10000",
            # A shard host serves all collections of its node under one configuration: that of tests/live as well.
            "cluster.heartbeat_ms=150",
            "cluster.suspect_after_ms=1000",
            "cluster.dead_after_ms=2500",
            "cluster.announce_ms=1000",
            "search.tail_block_rows=64",
        ]
    )
    folder = str(tmp_path_factory.mktemp("served") / "photos.stemma")
    serve_up({"photos": folder}, settings)
    yield Server(f"http://127.0.0.1:{port}", folder, settings)
    serve_down({"photos": folder}, settings)
