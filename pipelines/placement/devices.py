"""Accelerators: how much memory each has, and the machines that Vertex offers them in."""

from dataclasses import dataclass

# GiB that a process can have of each, as drivers count: less than the name says. The names are those of Vertex AI
# (MachineSpec.acceleratorType); profiles for Kubernetes use them too.
DEVICES = {
    "NVIDIA_TESLA_T4": 14.6,
    "NVIDIA_L4": 22.0,
    "NVIDIA_TESLA_A100": 39.4,
    "NVIDIA_A100_80GB": 79.1,
    "NVIDIA_H100_80GB": 79.1,
    "NVIDIA_H100_MEGA_80GB": 79.1,
    "NVIDIA_H200_141GB": 139.8,
}


@dataclass(frozen=True)
class Machine:
    """A machine type of Vertex AI.

    Args:
        cpus, memory_gb: All of it; a stage has the machine to itself.
        accelerator: None where it is for stages without one.
        counts: Accelerators that it can have.
        only_preemptible: Whether it is let for spot and flex-start jobs alone.
    """

    cpus: int
    memory_gb: int
    accelerator: str | None = None
    counts: tuple[int, ...] = (0,)
    only_preemptible: bool = False


# https://cloud.google.com/vertex-ai/docs/training/configure-compute: machine types, and accelerators that fit them.
MACHINES = {
    "n1-standard-4": Machine(4, 15, "NVIDIA_TESLA_T4", (1, 2, 4)),
    "n1-standard-8": Machine(8, 30, "NVIDIA_TESLA_T4", (1, 2, 4)),
    "n1-standard-16": Machine(16, 60, "NVIDIA_TESLA_T4", (1, 2, 4)),
    "n1-standard-32": Machine(32, 120, "NVIDIA_TESLA_T4", (2, 4)),
    "g2-standard-4": Machine(4, 16, "NVIDIA_L4", (1,)),
    "g2-standard-8": Machine(8, 32, "NVIDIA_L4", (1,)),
    "g2-standard-12": Machine(12, 48, "NVIDIA_L4", (1,)),
    "g2-standard-16": Machine(16, 64, "NVIDIA_L4", (1,)),
    "g2-standard-32": Machine(32, 128, "NVIDIA_L4", (1,)),
    "g2-standard-24": Machine(24, 96, "NVIDIA_L4", (2,)),
    "g2-standard-48": Machine(48, 192, "NVIDIA_L4", (4,)),
    "g2-standard-96": Machine(96, 384, "NVIDIA_L4", (8,)),
    "a2-highgpu-1g": Machine(12, 85, "NVIDIA_TESLA_A100", (1,)),
    "a2-highgpu-2g": Machine(24, 170, "NVIDIA_TESLA_A100", (2,)),
    "a2-highgpu-4g": Machine(48, 340, "NVIDIA_TESLA_A100", (4,)),
    "a2-highgpu-8g": Machine(96, 680, "NVIDIA_TESLA_A100", (8,)),
    "a2-megagpu-16g": Machine(96, 1360, "NVIDIA_TESLA_A100", (16,)),
    "a2-ultragpu-1g": Machine(12, 170, "NVIDIA_A100_80GB", (1,)),
    "a2-ultragpu-2g": Machine(24, 340, "NVIDIA_A100_80GB", (2,)),
    "a2-ultragpu-4g": Machine(48, 680, "NVIDIA_A100_80GB", (4,)),
    "a2-ultragpu-8g": Machine(96, 1360, "NVIDIA_A100_80GB", (8,)),
    "a3-highgpu-1g": Machine(26, 234, "NVIDIA_H100_80GB", (1,), only_preemptible=True),
    "a3-highgpu-2g": Machine(52, 468, "NVIDIA_H100_80GB", (2,), only_preemptible=True),
    "a3-highgpu-4g": Machine(104, 936, "NVIDIA_H100_80GB", (4,), only_preemptible=True),
    "a3-highgpu-8g": Machine(208, 1872, "NVIDIA_H100_80GB", (8,)),
    "a3-megagpu-8g": Machine(208, 1872, "NVIDIA_H100_MEGA_80GB", (8,)),
    "a3-ultragpu-8g": Machine(224, 2952, "NVIDIA_H200_141GB", (8,)),
    "e2-standard-4": Machine(4, 16),
    "e2-standard-8": Machine(8, 32),
    "e2-standard-16": Machine(16, 64),
    "e2-standard-32": Machine(32, 128),
    "e2-highmem-4": Machine(4, 32),
    "e2-highmem-8": Machine(8, 64),
    "e2-highmem-16": Machine(16, 128),
    "n2-highmem-32": Machine(32, 256),
    "n2-highmem-48": Machine(48, 384),
    "n2-highmem-64": Machine(64, 512),
    "n2-highmem-80": Machine(80, 640),
}
