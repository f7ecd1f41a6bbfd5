"""What can be found wrong before anything is sent."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from kfp.dsl.base_component import BaseComponent

from pipelines import params
from pipelines.placement.cluster import Profile, ProfileError
from pipelines.submit.errors import SubmitError

DATASETS = ("prompt_dataset", "preference_dataset", "eval_dataset", "demonstration_dataset")
# Where parameters that nothing acts on are, and why.
_NO_SERVING = "the profile has no {}: see docs/serving.md"


def nothing_there(profile: Profile) -> dict[str, str]:
    """Parameters that nothing acts on where a run is placed by this profile, and why."""
    if profile.platform == "vertex":
        return {} if profile.vertex.serving else {"deploy_model": _NO_SERVING.format("vertex.serving")}
    nothing = {
        "tensorboard_resource_id": "event files are among the outputs of the stages",
        "encryption_spec_key_name": "encryption is the object store's own setting on Kubernetes",
    }
    if not profile.kubernetes.kserve:
        nothing["deploy_model"] = _NO_SERVING.format("kubernetes.kserve")
    return nothing


def parameters(path: str | Path, pipeline: BaseComponent, profile: Profile) -> tuple[dict[str, Any], list[str]]:
    """Read a parameter file and check all of it that can be checked from here.

    Args:
        pipeline: A function decorated with `dsl.pipeline`.
        profile: Where and how large it will run.

    Returns:
        The arguments to run the pipeline with, and warnings.

    Raises:
        pipelines.params.ParameterError: A parameter or an option of a stage is unknown, missing, of the wrong type or
            out of range, or names a file of this machine, or all of them are too long; one line for each.
    """
    values = params.with_graders(params.read(path))
    arguments, warnings = params.check(values, pipeline, nothing_there(profile))
    errors = [*_files_of_this_machine(arguments), *_serving(arguments, profile), *_options(arguments, pipeline)]
    errors += _too_long(arguments)
    if errors:
        raise params.ParameterError("\n".join(errors))
    return arguments, [*warnings, *_not_mounted(arguments, profile)]


def fits(arguments: dict[str, Any], profile: Profile) -> list[str]:
    """See that the models fit the accelerators, RAM and disks, as `make plan` does.

    Args:
        arguments: From `parameters`.

    Returns:
        A warning where that cannot be said from here; none otherwise.

    Raises:
        pipelines.params.ParameterError: They do not fit; one line for each stage.
    """
    models = _models(arguments)
    for name, model in models.items():
        if "://" in model and not model.startswith("hf://"):
            return [
                f"{name}: whether {model} fits is not known, for all of it would be downloaded; `make plan` does so"
            ]
    # Sizes are measured on models without weights: this imports torch, which takes seconds.
    from pipelines.plan import job_of, problems
    from rlhf.errors import RlhfError
    from rlhf.models import references, sizes

    try:
        for name, model in models.items():
            if "/" in model and model not in sizes.KNOWN:
                references.check(model, name)  # within seconds, where loading asks again and again
        found = problems(job_of(arguments["large_model_reference"], arguments), profile)
    except (RlhfError, ProfileError, ValueError) as error:  # the last of Transformers, where it knows no such model
        return [f"whether the models fit the profile is not known: {' '.join(str(error).split())}"]
    if found:
        found.append("plan: the run cannot fit, for these reasons; PLAN=0 submits it all the same")
        raise params.ParameterError("\n".join(found))
    return []


def dns_label(value: str, parameter: str, *, letter_first: bool = False) -> str:
    """The value, if it is a DNS label (RFC 1123; with `letter_first`, RFC 1035).

    Raises:
        SubmitError: It is none; the message has one made of it.
    """
    first = "a-z" if letter_first else "a-z0-9"
    if re.fullmatch(rf"[{first}]([-a-z0-9]{{0,61}}[a-z0-9])?", value):
        return value
    close = re.sub(r"[^a-z0-9]+", "-", value.lower())
    close = (close.lstrip("-0123456789") if letter_first else close.lstrip("-"))[:63].rstrip("-")
    raise SubmitError(
        f"{parameter}: found {value!r}, expected a DNS label: up to 63 small letters, digits and '-', beginning with "
        f"{'a letter' if letter_first else 'a letter or digit'} and not ending with '-'"
        + (f"; for example {close}" if close else "")
    )


def _parts(dataset: str) -> list[str]:
    return [part.strip() for part in dataset.split(",") if part.strip()]


def _files_of_this_machine(arguments: dict[str, Any]) -> Iterator[str]:
    # A path that begins at the root may be a mounted volume, or a bucket under Vertex's /gcs/.
    for name in DATASETS:
        for part in _parts(arguments.get(name, "")):
            if "://" not in part and not part.startswith("/"):
                yield (
                    f"{name}: found {part!r}, a path on this machine, expected a URI that pods can read, "
                    "such as gs://, s3://, hf:// or https://; upload the file first"
                )
    for name, folder in _folders(arguments).items():
        if "://" not in folder and not folder.startswith("/"):
            yield (
                f"{name}: found {folder!r}, a path on this machine, expected a URI that pods can reach, such as gs:// "
                "or s3://, or a folder that is mounted in them"
            )
    for name, model in _models(arguments).items():
        relative = "://" not in model and not model.startswith("/")
        if relative and (model.startswith((".", "~")) or Path(model).is_dir()):
            yield (
                f"{name}: found {model!r}, a folder on this machine, expected a Hugging Face id or a URI that pods "
                "can read, such as gs:// or s3://; upload the folder first"
            )


def _too_long(arguments: dict[str, Any]) -> Iterator[str]:
    """What would end a run with "argument list too long" when its first task starts."""
    sizes = {name: _bytes(value) for name, value in arguments.items()}
    total = _bytes(arguments)
    if total > params.LONGEST:
        longest = max(sizes, key=sizes.__getitem__)
        yield (
            f"{longest}: has {sizes[longest]:,} of the {total:,} bytes that all parameters have as JSON, expected at "
            f"most {params.LONGEST:,} of all; shorten it: files of graders can lie where a URI reaches them, or in a "
            "package of the image"
        )


def _bytes(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode())


def _models(arguments: dict[str, Any]) -> dict[str, str]:
    models = {
        "large_model_reference": arguments["large_model_reference"],
        "reward.base_model": arguments.get("reward", {}).get("base_model"),
    }
    return {name: model for name, model in models.items() if isinstance(model, str)}


def _folders(arguments: dict[str, Any]) -> dict[str, str]:
    """What is kept beyond a pod's life, or was kept by other runs."""
    evaluation = arguments.get("evaluation", {})
    folders = {"publish_to": arguments.get("publish_to")}
    for stage in ("sft", "reward", "ppo", "grpo", "inference"):
        folders[f"{stage}.checkpoint_dir"] = arguments.get(stage, {}).get("checkpoint_dir")
    if isinstance(judge := evaluation.get("judge"), dict):
        folders["evaluation.judge.cache"] = judge.get("cache")
    if isinstance(others := evaluation.get("others"), dict):
        folders |= {f"evaluation.others.{name}": other for name, other in others.items()}
    return {name: folder for name, folder in folders.items() if folder and isinstance(folder, str)}


def _not_mounted(arguments: dict[str, Any], profile: Profile) -> Iterator[str]:
    """A warning for each path that no pod has by what the profile says; clusters may mount more by themselves."""
    if profile.platform == "vertex":
        mounted, where = ["/gcs/"], "is not below /gcs/, where jobs have buckets"
    else:
        settings = profile.kubernetes
        volumes = [*settings.volumes, *([settings.model_cache] if settings.model_cache else [])]
        mounted, where = [f"{volume.path.rstrip('/')}/" for volume in volumes], "is on none of kubernetes.volumes"
    places = [*_models(arguments).items(), *_folders(arguments).items()]
    places += [(name, part) for name in DATASETS for part in _parts(arguments.get(name, ""))]
    for name, path in places:
        if path.startswith("/") and not any(f"{path}/".startswith(volume) for volume in mounted):
            yield f"{name}: {path} {where} in the profile; pods must have it from elsewhere, or name a URI"


def _serving(arguments: dict[str, Any], profile: Profile) -> Iterator[str]:
    """What the steps after the publisher would refuse, hours later."""
    publish_to = arguments.get("publish_to", "")
    if not publish_to:
        return
    if profile.vertex.serving and not publish_to.startswith("gs://"):
        yield f"publish_to: found {publish_to!r}, expected a gs:// folder, from which Vertex AI can serve"
    mounted = [volume.path for volume in profile.kubernetes.volumes]
    on_volume = any(publish_to.startswith(path) for path in mounted)
    if profile.kubernetes.kserve and arguments.get("deploy_model") and publish_to.startswith("/") and not on_volume:
        yield (
            f"publish_to: found {publish_to!r}, expected gs:// or s3://, or a folder on one of the profile's "
            f"kubernetes.volumes ({', '.join(mounted) or 'none'}), from which KServe can serve"
        )


def _options(arguments: dict[str, Any], pipeline: BaseComponent) -> Iterator[str]:
    """What the first stage would refuse after the pods have started: the stages' configs are here, too."""
    # Outside a container only configs, which load no models.
    from rlhf.bulk_inference.config import BulkInferenceConfig
    from rlhf.data_validation.config import DataValidationConfig
    from rlhf.errors import ConfigError
    from rlhf.evaluator.config import EvaluatorConfig
    from rlhf.grpo_trainer.config import GRPOTrainerConfig
    from rlhf.job import merge_options
    from rlhf.ppo_trainer.config import PPOTrainerConfig
    from rlhf.reward_trainer.config import RewardTrainerConfig
    from rlhf.sft_trainer.config import SFTTrainerConfig

    of_pipeline = {**defaults(pipeline), **arguments}
    structs = {"sft", "reward", "ppo", "grpo", "inference", "evaluation", "seed"}
    of_data = {name: of_pipeline[name] for name in (DataValidationConfig.model_fields.keys() & of_pipeline) - structs}
    tuning = {
        "train_steps": of_pipeline["reinforcement_learning_train_steps"],
        "learning_rate_multiplier": of_pipeline["reinforcement_learning_rate_multiplier"],
        "kl_coeff": of_pipeline["kl_coeff"],
    }
    grader = {"grader": of_pipeline["grader"]} if "grader" in of_pipeline else {}
    configs = {
        "data_validation": (DataValidationConfig, of_data | ({"grpo": grader} if grader else {})),
        "sft": (SFTTrainerConfig, {}),
        "reward": (
            RewardTrainerConfig,
            {
                "train_steps": of_pipeline.get("reward_model_train_steps"),
                "learning_rate_multiplier": of_pipeline.get("reward_model_learning_rate_multiplier"),
            },
        ),
        "ppo": (PPOTrainerConfig, tuning),
        "grpo": (GRPOTrainerConfig, tuning | grader),
        "inference": (BulkInferenceConfig, {}),
        "evaluation": (EvaluatorConfig, {}),
    }
    for name, (config, by_parameter) in configs.items():
        if name not in pipeline.pipeline_spec.root.input_definitions.parameters:
            continue
        try:
            config.parse(merge_options(arguments.get(name, {}), name, **by_parameter, seed=of_pipeline["seed"]), name)
        except ConfigError as error:
            yield str(error)


def defaults(pipeline: BaseComponent) -> dict[str, Any]:
    """Values of the pipeline's parameters where none are given."""
    known = pipeline.pipeline_spec.root.input_definitions.parameters
    return {
        name: json_format.MessageToDict(definition.default_value)
        for name, definition in known.items()
        if definition.HasField("default_value")
    }
