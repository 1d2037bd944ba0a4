"""The Ray cluster of a program's workers."""

import logging
from collections.abc import Mapping

from worldmodel.cli import exit_on_sigterm


def connect(num_workers: int, address: str = "", resources: Mapping[str, float] = {"CPU": 1}) -> None:
    """Connect to a Ray cluster, or start one on this machine that has a CPU for each worker; ``ray.shutdown`` ends it.

    Args:
        address: address of a running cluster; empty starts a local one.
        resources: CPUs and GPUs that each worker needs.

    Raises:
        ValueError: if the cluster has too few of them for all workers, which would wait for ever.
    """
    import ray

    cluster = {"address": address} if address else {"address": "local", "num_cpus": num_workers}
    ray.init(**cluster, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)  # pyright: ignore[reportArgumentType]
    exit_on_sigterm()
    available = ray.cluster_resources()
    for kind, amount in resources.items():
        if available.get(kind, 0) < num_workers * amount:
            need = f"{num_workers * amount} {kind}s, Ray has {available.get(kind, 0):.0f}"
            raise ValueError(f"{num_workers} workers need {need}; use fewer --workers, or another --address")
