"""A published model: served as it was tuned, told as it is, and nothing that was not asked for."""
# ruff: noqa: F811 - tests take fixtures that are imported

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from rlhf.data.store import write_dataset
from rlhf.data.template import Template
from rlhf.errors import ConfigError, ModelError
from rlhf.models import references
from rlhf.models.card import ModelCard
from rlhf.models.policy import Policy
from rlhf.publisher import PublisherConfig, stage
from rlhf.publisher.card import readme
from tests import stores
from tests.loopback import environment, loopback_only, moto_port, opened  # noqa: F401
from tests.ppo import config_of

INSTRUCTION = "Sum up.\n```\n| <b>briefly</b> 😀"
TEXTS = ["My brother sold my guitar. It was on monday.", "So this is about my boss."]
LENGTH = 8
FIGURES = {
    "promote": 1.0,
    "win_rate_controlled": 0.625,
    "win_rate_controlled_low": 0.55,
    "win_rate_controlled_high": 0.7,
    "kl": 3.21,
    "ended_before": 0.9,
    "ended_after": 0.95,
    "rouge_l_after": 0.3,
}


def template_of(**changed) -> Template:
    return Template(**{"instruction": INSTRUCTION, "suffix": "\nTL;DR:", "target_sequence_length": LENGTH} | changed)


def tune(base: Path, folder: Path, tuning: str = "full", template: Template | None = None) -> Path:
    """A policy as ppo_trainer saves it, with weights of its own."""
    template = template or template_of()
    policy, trainee = Policy.to_train(base, template, config_of(tuning=tuning))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    policy.save(folder, card_of(trainee.base, template, base_in_4_bits=tuning == "qlora"))
    return folder


def card_of(base: str, template: Template, **more) -> ModelCard:
    return ModelCard(kind="policy", base=base, template_digest=template.digest, data_digest="da7a", **more)


def publish(model: Path, folder: Path, template: Template | None = None, **options) -> dict[str, float]:
    """Into `folder`/published, and to `folder`/served unless `publish_to` says otherwise."""
    write_dataset(folder / "evaluation", "prompts", [{"id": "1", "prompt": "a"}], template or template_of())
    config = PublisherConfig.parse({"publish_to": str(folder / "served"), "figures": FIGURES} | options)
    return stage.run(
        config, model=str(model), evaluation=str(folder / "evaluation"), published=str(folder / "published")
    )


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def snippet(folder: Path, text: str) -> str:
    """What the code in the model's card makes of a text."""
    code = re.search(r"```python\n(.*?)\n```", (folder / "README.md").read_text(), re.DOTALL)[1]
    variables = {"folder": str(folder), "text": text}
    exec(code, variables)
    return variables["completion"]


@pytest.mark.parametrize("tuning", ["full", "lora", "qlora"])
def test_what_is_served_is_what_was_tuned(policy_folder, tmp_path, tuning):
    model = tune(policy_folder, tmp_path / "model", tuning)
    metrics = publish(model, tmp_path)
    served = tmp_path / "served"
    assert metrics["merged"] == (tuning != "full")
    tuned = Policy.load(model, template_of())
    auto = AutoModelForSeq2SeqLM if tuned.kind == "seq2seq" else AutoModelForCausalLM
    plain = auto.from_pretrained(served, use_safetensors=True)
    assert plain.dtype == torch.float32
    inputs = AutoTokenizer.from_pretrained(served)(TEXTS[0], return_tensors="pt")
    ids = {**inputs, **({"decoder_input_ids": torch.tensor([[0, 5, 6]])} if tuned.kind == "seq2seq" else {})}
    with torch.no_grad():
        logits = tuned.model.eval()(**ids).logits
        assert (plain(**ids).logits - logits).abs().max() < 1e-4 * logits.abs().max()


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_code_in_the_card_gives_the_completions_of_the_pipeline(policy_folder, tmp_path, tuning):
    """Prompt, where a completion ends, and which tokens it may have: all as the model was tuned."""
    template = template_of()
    model = tune(policy_folder, tmp_path / "model", tuning)
    publish(model, tmp_path)
    tuned = Policy.load(model, template, merged=True)
    prompts = [tuned.encode_prompt(template.render(text)) for text in TEXTS]
    expected = [tuned.decode(ids) for ids in tuned.generate(prompts, LENGTH, temperature=0.0)]
    assert [snippet(tmp_path / "served", text) for text in TEXTS] == expected


def test_a_chat_models_card_gives_its_completions_too(chat_folder, tmp_path):
    from tests.conftest import CHAT_TEMPLATE

    template = template_of(chat_template=CHAT_TEMPLATE, special_tokens={"bos_token": "<s>"})
    model = tune(chat_folder, tmp_path / "model", template=template)
    publish(model, tmp_path, template)
    served = tmp_path / "served"
    assert AutoTokenizer.from_pretrained(served).chat_template == CHAT_TEMPLATE
    tuned = Policy.load(model, template)
    (ids,) = tuned.generate([tuned.encode_prompt(template.render(TEXTS[0]))], LENGTH, temperature=0.0)
    assert snippet(served, TEXTS[0]) == tuned.decode(ids)
    assert "As a chat: the text is one user message" in (served / "README.md").read_text()


def test_a_server_learns_where_a_completion_ends(llama_folder, tmp_path):
    model = tune(llama_folder, tmp_path / "model")
    assert "eos_token_id" not in json.loads((model / "generation_config.json").read_text())
    publish(model, tmp_path)
    generation = json.loads((tmp_path / "served/generation_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert generation["eos_token_id"] == tokenizer.eos_token_id
    assert generation["pad_token_id"] == tokenizer.pad_token_id
    assert tokenizer.eos_token_id not in generation["suppress_tokens"]


def test_a_whole_model_is_not_loaded_and_only_what_a_server_reads_is_published(llama_folder, tmp_path, monkeypatch):
    model = tune(llama_folder, tmp_path / "model")
    for left in ("optimizer.pt", "training_args.bin", "trainer_state.json", "events.out.tfevents.1", "notes.txt"):
        (model / left).write_text("left")
    (model / "checkpoint-4").mkdir()
    (model / "checkpoint-4/model.safetensors").write_text("left")
    before = {name: (model / name).read_bytes() for name in names(model)}
    monkeypatch.setattr(Policy, "load", None)
    metrics = publish(model, tmp_path)
    served = tmp_path / "served"
    weights_and_tokenizer = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    made = {"generation_config.json", "README.md", "rlhf.json", "template.json", "manifest.json"}
    assert names(served) == names(tmp_path / "published") == weights_and_tokenizer | made
    assert (served / "model.safetensors").read_bytes() == before["model.safetensors"]
    assert metrics["files"] == len(names(served)) - 1
    assert metrics["bytes"] == sum((served / name).stat().st_size for name in names(served) - {"manifest.json"})
    assert {name: (model / name).read_bytes() for name in names(model)} == before, "the tuned policy stays as it was"


def test_what_is_published_is_a_model_for_the_pipelines_stages_too(llama_folder, tmp_path):
    publish(tune(llama_folder, tmp_path / "model", "lora"), tmp_path)
    references.check(str(tmp_path / "served"), "large_model_reference")
    card = ModelCard.load(tmp_path / "served")
    card.require_kind("policy", "served")
    card.require_template(Template.load(tmp_path / "served"), "served")
    assert Policy.load(tmp_path / "served").card == card


def test_the_card_says_what_the_model_is_and_what_it_was_judged_by(llama_folder, tmp_path):
    model = tune(llama_folder, tmp_path / "model")
    template = template_of()
    card_of("google/some-model", template).save(model)
    publish(model, tmp_path, model_display_name="mine")
    text = (tmp_path / "served/README.md").read_text()
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert metadata["base_model"] == "google/some-model"
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("transformers", "text-generation")
    digest = json.loads((tmp_path / "evaluation/manifest.json").read_text())["digest"]
    for said in (
        "# mine",
        "| Base model | google/some-model |",
        "| Tuned on prompts | data digest da7a |",
        f"| Evaluated on | data digest {digest} |",
        f"| Prompt template | digest {template.digest} |",
        "| Verdict | promote |",
        "at equal lengths | 62\u00a0% (95\u00a0% interval 55\u00a0% to 70\u00a0%), by the reward model |",
        "| KL from the model before | 3.21 nats per completion |",
        "| Completions that end by themselves | 95.0\u00a0%, 90\u00a0% before |",
    ):
        assert said in text
    assert "as the lengths are" not in text, "what was not measured is not said"


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"reward_after": 1.0}, "learning on human preferences."),
        ({"grade_after": 1.0}, "learning on the grades of a grader."),
        ({"reward_after": 1.0, "grade_after": 1.0}, "learning on human preferences and the grades of a grader."),
        ({}, "learning."),
    ],
)
def test_human_preferences_are_spoken_of_only_where_there_were_any(figures, said):
    text = readme("m", card_of("a/b", template_of()), template_of(), figures, "d1", seq2seq=False)
    assert f"\nTuned with reinforcement {said}\n" in text


def test_text_of_users_is_text_in_the_card(llama_folder, tmp_path):
    model = tune(llama_folder, tmp_path / "model")
    publish(model, tmp_path, model_display_name="mine --- <script>alert(1)</script> | [x](javascript:y)")
    text = (tmp_path / "served/README.md").read_text()
    assert "# mine --- \\<script\\>alert(1)\\</script\\> \\| \\[x\\](javascript:y)\n" in text
    assert INSTRUCTION.splitlines()[0] in text
    assert "<b>" not in re.sub(r"\n```python\n.*?\n```\n", "", text, flags=re.DOTALL)
    assert text.count("\n```\n") == 1, "an instruction's own fence does not end the code"


def test_a_task_that_is_started_again_publishes_once(policy_folder, tmp_path):
    model = tune(policy_folder, tmp_path / "model", "lora")
    first, again = publish(model, tmp_path), publish(model, tmp_path)
    assert first["files_copied"] == first["files"] + 1
    assert again == first | {"files_copied": 0}


def test_another_model_there_is_refused_before_an_adapter_is_merged(llama_folder, tmp_path, monkeypatch):
    publish(tune(llama_folder, tmp_path / "model"), tmp_path)
    monkeypatch.setattr(stage, "_merge", None)
    with pytest.raises(ConfigError, match="holds another model"):
        publish(tune(llama_folder, tmp_path / "other", "lora"), tmp_path)


@pytest.mark.parametrize("protocol", ["s3", "gs"])
def test_from_an_object_store_it_can_be_loaded_and_no_secret_is_told(
    opened, llama_folder, tmp_path, protocol, capsys, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    uri = opened(protocol).uri("models/mine")
    metrics = publish(tune(llama_folder, tmp_path / "model"), tmp_path, publish_to=uri)
    references.check(uri, "large_model_reference")
    assert Policy.load(references.resolve(uri)).card.kind == "policy"
    assert f"copied {metrics['files_copied']:g} files to {uri}" in capsys.readouterr().out
    assert not [name for name in names(tmp_path / "published") if stores.SECRET.encode() in read(tmp_path, name)]


def read(folder: Path, name: str) -> bytes:
    return (folder / "published" / name).read_bytes()


def test_passwords_in_references_are_not_published(llama_folder, tmp_path):
    model = tune(llama_folder, tmp_path / "model")
    card_of("s3://id:a-pass-word@bucket/base", template_of()).save(model)
    publish(model, tmp_path)
    assert not [name for name in names(tmp_path / "published") if b"a-pass-word" in read(tmp_path, name)]


def test_an_adapter_whose_base_is_gone_says_what_to_do(llama_folder, tmp_path):
    model = tune(llama_folder, tmp_path / "model", "lora")
    card_of("/no/such/base", template_of()).save(model)
    with pytest.raises(ModelError) as error:
        publish(model, tmp_path)
    assert "its base '/no/such/base': no such folder" in str(error.value)
    assert "put the base where this task can read it, or tune with `save: merged`" in str(error.value)
    assert not (tmp_path / "served").exists()


def test_what_is_not_tuned_or_not_for_these_prompts_or_a_pickle_is_refused(llama_folder, tmp_path):
    model = tune(llama_folder, tmp_path / "model")
    with pytest.raises(ModelError, match="trained with prompt template"):
        publish(model, tmp_path, template_of(suffix="Summary:"))
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only has pickle weights"):
        publish(model, tmp_path)
    ModelCard(kind="base", base=str(llama_folder)).save(model)
    with pytest.raises(ModelError, match="only names its base model"):
        publish(model, tmp_path)
    assert not (tmp_path / "served").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        *[("x" * 129, "at most 128"), ("two\nlines", "match pattern")],
        # Vertex's upload step puts the name into JSON as it is.
        *[('a", "parent_model": "b', "match pattern"), ("a\\", "match pattern")],
    ],
)
def test_a_name_that_a_registry_would_refuse_is_refused(tmp_path, name, says):
    with pytest.raises(ConfigError, match=rf"model_display_name: found .*{says}"):
        PublisherConfig.parse({"publish_to": str(tmp_path), "model_display_name": name})


def test_the_card_of_a_run_with_a_grader_says_who_judged():
    from rlhf.publisher.card import _judged

    rates = {"win_rate": 0.9, "win_rate_low": 0.8, "win_rate_high": 0.95, "grade_after": 1.0}
    (_, said), *_ = _judged(rates)
    assert said.endswith("by the grader")
    (_, said), *_ = _judged(rates | {"reward_after": 1.0})
    assert said.endswith("by the reward model")
