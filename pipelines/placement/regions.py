"""Which regions of Vertex AI have which accelerators, as Google publishes it.

https://docs.cloud.google.com/gemini-enterprise-agent-platform/machine-learning/general/locations#region_considerations
(once https://cloud.google.com/vertex-ai/docs/general/locations), the table under "Using accelerators", as it was on
`AS_OF`; of the accelerators in `pipelines.placement.devices` alone. Whether a project has quota, and a region has
machines free, nobody publishes.
"""

from collections.abc import Mapping

AS_OF = "2026-11-21"

_T4, _L4 = "NVIDIA_TESLA_T4", "NVIDIA_L4"
_A100, _A100_80 = "NVIDIA_TESLA_A100", "NVIDIA_A100_80GB"
_H100, _MEGA, _H200 = "NVIDIA_H100_80GB", "NVIDIA_H100_MEGA_80GB", "NVIDIA_H200_141GB"

# {region: (for training and serving, for training alone, for serving alone)}
REGIONS: dict[str, tuple[frozenset[str], frozenset[str], frozenset[str]]] = {
    region: (frozenset(both), frozenset(training), frozenset(serving))
    for region, both, training, serving in [
        ("asia-east1", [_T4], [_MEGA], [_L4]),
        ("asia-east2", [_T4], [], []),
        ("asia-northeast1", [_H100, _MEGA, _T4], [], [_A100, _L4]),
        ("asia-northeast3", [_A100, _H100, _L4, _T4], [], []),
        ("asia-south1", [_H100, _L4, _T4, _H200], [], []),
        ("asia-south2", [_H200], [], []),
        ("asia-southeast1", [_A100, _A100_80, _H100, _MEGA, _L4, _T4], [], []),
        ("asia-southeast2", [_T4], [], []),
        ("australia-southeast1", [_MEGA, _T4], [], []),
        ("europe-central2", [_T4], [], []),
        ("europe-north1", [], [_MEGA], []),
        ("europe-west1", [_H100, _MEGA, _H200, _T4], [], [_L4]),
        ("europe-west2", [_H100, _L4, _T4], [], []),
        ("europe-west3", [_H100, _T4], [_MEGA], [_L4]),
        ("europe-west4", [_A100, _A100_80, _H100, _MEGA, _H200, _L4, _T4], [], []),
        ("europe-west6", [], [], [_L4]),
        ("me-central2", [_L4], [], []),
        ("me-west1", [_A100], [], [_A100_80, _T4]),
        ("northamerica-northeast1", [_T4], [], []),
        ("northamerica-northeast2", [_H100, _L4], [], []),
        ("southamerica-east1", [_T4], [], []),
        ("southamerica-west1", [], [], [_T4]),
        ("us-central1", [_A100, _A100_80, _H100, _MEGA, _H200, _L4, _T4], [], []),
        ("us-east1", [_L4, _T4], [_A100], []),
        ("us-east4", [_A100_80, _H100, _MEGA, _H200, _L4, _T4], [], []),
        ("us-east5", [_A100_80, _H100, _MEGA], [_H200], []),
        ("us-south1", [_H200], [], []),
        ("us-west1", [_MEGA, _H200, _L4, _T4, _H100], [], []),
        ("us-west2", [_T4], [], []),
        ("us-west3", [_A100], [], []),
        ("us-west4", [_H100, _MEGA, _T4], [_A100], [_L4]),
    ]
}


def regions_with(accelerator: str, *, serving: bool = False) -> list[str]:
    """Where an accelerator can be had for training, or for serving."""
    return [
        region
        for region, (both, training, only_serving) in REGIONS.items()
        if accelerator in both | (only_serving if serving else training)
    ]


def lacking(region: str, stages: Mapping[str, str], serving: str | None) -> str:
    """What a region does not have; empty where it has all.

    Args:
        stages: {stage: accelerator}.
        serving: Accelerator of an endpoint, if there is to be one.
    """
    asked = [(accelerator, stage, False) for stage, accelerator in stages.items()]
    asked += [(serving, "serving", True)] if serving else []
    for accelerator, who, is_serving in asked:
        where = regions_with(accelerator, serving=is_serving)
        if region not in where:
            return (
                f"location: {region} has no {accelerator} for {'serving' if is_serving else 'training'}, which {who} "
                f"is to have (by Google's table of {AS_OF}); expected one of {', '.join(where)}"
            )
    return ""
