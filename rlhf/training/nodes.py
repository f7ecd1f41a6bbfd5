"""The machines of one training run, as clusters tell each of them."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from rlhf.errors import ConfigError

RENDEZVOUS_SECONDS = 3600
"""How long the first node waits for the last one, and the others for the first: images are large."""


@dataclass(frozen=True)
class Nodes:
    """Where this machine stands among those that train together.

    Args:
        count: Machines.
        rank: Of this one; the first machine's first process writes.
        address, port: Where the first one is found by this one.
    """

    count: int
    rank: int
    address: str
    port: int

    @property
    def torchrun_options(self) -> list[str]:
        return [
            f"--nnodes={self.count}",
            f"--node-rank={self.rank}",
            f"--master-addr={self.address}",
            f"--master-port={self.port}",
            f"--rdzv-conf=timeout={RENDEZVOUS_SECONDS}",
        ]


def nodes(environment: Mapping[str, str] = os.environ) -> Nodes | None:
    """What Kubeflow Trainer or Vertex AI says of the machines; None where there is but this one.

    Kubeflow Trainer's torch runtimes set torchrun's own variables. Vertex AI sets `CLUSTER_SPEC`: addresses by worker
    pool, of which the first has one replica, the primary
    (https://cloud.google.com/vertex-ai/docs/training/distributed-training#cluster-spec-format).

    Raises:
        ConfigError: A variable does not hold what it is documented to hold.
    """
    if environment.get("PET_NNODES", "1") != "1":
        try:
            return Nodes(
                int(environment["PET_NNODES"]),
                int(environment["PET_NODE_RANK"]),
                environment["PET_MASTER_ADDR"],
                int(environment["PET_MASTER_PORT"]),
            )
        except (KeyError, ValueError) as error:
            found = {name: value for name, value in environment.items() if name.startswith("PET_")}
            raise ConfigError(
                f"PET_NNODES: found {found}, expected PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT beside it, as "
                "Kubeflow Trainer sets them for a runtime with the torch policy"
            ) from error
    if not (text := environment.get("CLUSTER_SPEC")):
        return None
    try:
        spec = json.loads(text)
        pools = sorted(spec["cluster"].items())
        replicas = [(pool, index) for pool, addresses in pools for index in range(len(addresses))]
        address, _, port = pools[0][1][0].rpartition(":")
        rank = replicas.index((spec["task"]["type"], int(spec["task"]["index"])))
        # The primary is not to need its own name, which leads to it by way of a service.
        found = Nodes(len(replicas), rank, address if rank else "localhost", int(port))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ConfigError(
            f"CLUSTER_SPEC: found {text[:300]!r}, expected addresses by worker pool and the task of this replica"
        ) from error
    return found if found.count > 1 else None
