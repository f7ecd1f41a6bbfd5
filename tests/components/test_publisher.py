"""The publisher's faces: what the tasks after it, and whoever reads the artifact, are told."""
# ruff: noqa: F811 - tests take fixtures that are imported

import json
from types import SimpleNamespace

import pytest

from components.publisher.component import publisher
from components.publisher.kserve import kserve, kserve_check
from rlhf.data.store import write_dataset
from rlhf.models.card import ModelCard
from tests.unit.test_kserve import PUBLISHED, cluster  # noqa: F401
from tests.unit.test_publisher import FIGURES, template_of, tune


def test_the_artifact_tells_a_platform_what_it_needs(llama_folder, tmp_path):
    model = tune(llama_folder, tmp_path / "model")
    write_dataset(tmp_path / "evaluation", "prompts", [{"id": "1", "prompt": "a"}], template_of())
    logged = {}
    artifacts = {
        name: SimpleNamespace(path=str(tmp_path / name), metadata={}) for name in ("model", "evaluation", "published")
    }
    name = publisher.python_func(
        **artifacts,
        figures=SimpleNamespace(metadata=FIGURES | {"state": "LIVE"}),
        metrics=SimpleNamespace(log_metric=logged.__setitem__),
        publish_to=str(tmp_path / "served"),
        model_display_name="mine",
    )
    assert name == "mine", "what the steps after it call the model"
    metadata = artifacts["published"].metadata
    assert metadata["display_name"] == "mine"
    assert metadata["published_to"] == str(tmp_path / "served")
    assert (metadata["framework"], metadata["architecture"]) == ("transformers", "LlamaForCausalLM")
    assert (metadata["promote"], metadata["win_rate_controlled_low"], metadata["kl"]) == (1.0, 0.55, 3.21)
    assert metadata["base"] == ModelCard.load(model).base
    assert "rouge_l_after" not in metadata
    assert {"bytes", "files", "files_copied", "seconds"} <= set(logged)


def test_the_component_logs_what_it_did_and_says_what_went_wrong(cluster, capsys):
    metrics = SimpleNamespace(log_metric=lambda name, value: logged.__setitem__(name, value))
    logged: dict[str, float] = {}
    given = {"published": SimpleNamespace(metadata=PUBLISHED), "metrics": metrics, "publish_to": "gs://b/m"}
    # KFP carries numbers of a struct as floats.
    struct = json.loads(json.dumps({"count": 1.0, "wait_minutes": 5.0}))
    assert kserve.python_func(**given, deploy=True, service=struct) == "http://mine.example"
    assert logged["deployed"] == 1
    cluster.kserve = False
    with pytest.raises(SystemExit):
        kserve_check.python_func(service=struct)
    assert "[kserve] error: this cluster has no KServe" in capsys.readouterr().out
