"""What compiled files ask for, a line for each executor.

`python -m tests.pipelines.placed > tests/pipelines/placed.txt` writes the file that is compared
with what is compiled now, so that whoever changes a profile sees in a diff what becomes of it.
"""

import functools
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from components.images import cluster_images
from pipelines import PIPELINES
from pipelines.compile import compile_pipelines
from pipelines.placement.cluster import load_profile, names

IMAGES = cluster_images("registry.example/team", "1f2e3d")
TABLE = Path(__file__).with_name("placed.txt")


@functools.cache
def compiled(profile: str) -> dict[str, str]:
    """{pipeline: the file as text}, compiled for a profile."""
    with tempfile.TemporaryDirectory() as folder:
        paths = compile_pipelines(load_profile(profile), IMAGES, Path(folder))
        return dict(zip(PIPELINES, (path.read_text() for path in paths), strict=True))


def documents(profile: str, pipeline: str) -> list[dict]:
    return list(yaml.safe_load_all(compiled(profile)[pipeline]))


def rows(profile: str, pipeline: str) -> list[str]:
    """A line for each executor, by name."""
    spec, *platform = documents(profile, pipeline)
    pods = platform[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if platform else {}
    lines = []
    for name, executor in sorted(spec["deploymentSpec"]["executors"].items()):
        asked = _job(spec, name) or _pod(executor["container"], pods.get(name, {}))
        asked["retries"] = _retries(spec, name)
        facts = " ".join(f"{key}={value}" for key, value in asked.items() if value not in ("", None, [], {}))
        lines.append(f"{profile} {pipeline} {name.removeprefix('exec-')}: {facts}")
    return lines


def _pod(container: dict, pod: dict) -> dict[str, Any]:
    asked = container.get("resources", {})
    accelerator = asked.get("accelerator", {})
    mounts = [
        f"{mount['mountPath']}({mount.get('medium', 'disk')},{mount['sizeLimit']})"
        for mount in pod.get("emptyDirMounts", [])
    ]
    return {
        "image": container["image"],
        "runs": _runs(container["args"]),
        "accelerator": accelerator and f"{accelerator['resourceCount']}x{accelerator['resourceType']}",
        "cpu": f"{asked['resourceCpuRequest']}..{asked['resourceCpuLimit']}",
        "memory": f"{asked['resourceMemoryRequest']}..{asked['resourceMemoryLimit']}",
        "seconds": pod.get("activeDeadlineSeconds"),
        "env": ",".join(f"{each['name']}:{each['value']}" for each in container.get("env", [])),
        "secrets": ",".join(
            f"{key['envVar']}:{secret['secretName']}/{key['secretKey']}"
            for secret in pod.get("secretAsEnv", [])
            for key in secret["keyToEnv"]
        ),
        "mounts": ",".join(mounts),
        "tolerates": ",".join(each["key"] for each in pod.get("tolerations", [])),
        "prefers": ",".join(
            f"{match['key']}{match['operator']}{match['values'][0]}"
            for each in pod.get("nodeAffinity", [])
            for match in each["matchExpressions"]
        ),
    }


def _job(spec: dict, executor: str) -> dict[str, Any] | None:
    """Of a stage that is a custom job."""
    component = next(each for each in spec["components"].values() if each.get("executorLabel") == executor)
    given = component["inputDefinitions"]["parameters"]
    if "worker_pool_specs" not in given:
        return None
    default = {name: parameter.get("defaultValue") for name, parameter in given.items()}
    pools = default["worker_pool_specs"]
    (pool, *others) = pools
    machine, disk = pool["machine_spec"], pool["disk_spec"]
    assert all({**other, "replica_count": 1} == pool for other in others)
    return {
        "image": pool["container_spec"]["image_uri"],
        "runs": _runs(pool["container_spec"]["args"]),
        "machine": machine["machine_type"],
        "accelerator": f"{int(machine['accelerator_count'])}x{machine['accelerator_type']}"
        if "accelerator_type" in machine
        else None,
        "nodes": sum(int(each["replica_count"]) for each in pools),
        "disk": f"{int(disk['boot_disk_size_gb'])}GB({disk['boot_disk_type']})",
        "strategy": default["strategy"],
        "timeout": default["timeout"],
        "env": ",".join(f"{each['name']}:{each['value']}" for each in pool["container_spec"]["env"]),
    }


def _runs(args: list[str]) -> str:
    return args[args.index("--function_to_execute") + 1]


def _retries(spec: dict, executor: str) -> int:
    """Of the task that the executor is of."""
    label = next(name for name, each in spec["components"].items() if each.get("executorLabel") == executor)
    dags = [spec["root"]["dag"], *(each["dag"] for each in spec["components"].values() if "dag" in each)]
    (task,) = [task for dag in dags for task in dag["tasks"].values() if task["componentRef"]["name"] == label]
    return task.get("retryPolicy", {}).get("maxRetryCount", 0)


def table() -> str:
    return "".join(f"{row}\n" for name in names() for pipeline in PIPELINES for row in rows(name, pipeline))


if __name__ == "__main__":
    sys.stdout.write(table())
