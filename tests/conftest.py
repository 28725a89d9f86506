"""One Ray for the whole run, started when the first test asks for it and ended with the session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

MIB = 1024 * 1024
SYSTEM = {  # facts/ray.md, section 1: a lost node is noticed after about a second instead of fourteen
    "health_check_period_ms": 300,
    "health_check_failure_threshold": 3,
    "health_check_timeout_ms": 500,
    "health_check_initial_delay_ms": 0,
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
