"""The model's own chat template in the stages: found by the first, and used by all that follow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from rlhf.data.chat import MARK_START
from rlhf.data.store import read_dataset, write_dataset
from rlhf.data.template import Template
from rlhf.data_validation import DataValidationConfig
from rlhf.data_validation.chat_template import load_chat_template
from rlhf.data_validation.stage import run
from rlhf.errors import ModelError
from tests.chat import CHATML, GEMMA, SPECIAL, chat, said
from tests.conftest import CHAT_TEMPLATE
from tests.intake import write_rows

# Where the template is found


def model_folder(folder: Path, config: dict | None, jinja: str | None = None) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").touch()
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if jinja is not None:
        (folder / "chat_template.jinja").write_text(jinja)
    return str(folder)


def test_the_file_beside_the_tokenizer_counts_before_its_config(tmp_path):
    tokens = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "pad_token": None}
    folder = model_folder(tmp_path / "m", {"chat_template": CHATML, **tokens})
    found = load_chat_template(folder, None)
    assert (found.text, found.special_tokens) == (CHATML, SPECIAL)
    assert found.source == f"tokenizer_config.json of {folder}"
    found = load_chat_template(model_folder(tmp_path / "m", {"chat_template": CHATML, **tokens}, GEMMA), None)
    assert (found.text, found.source) == (GEMMA, f"chat_template.jinja of {folder}")


def test_of_several_templates_the_default_is_taken(tmp_path):
    several = [{"name": "tool_use", "template": GEMMA}, {"name": "default", "template": CHATML}]
    assert load_chat_template(model_folder(tmp_path / "m", {"chat_template": several}), None).text == CHATML
    with pytest.raises(ModelError, match=r"several chat templates .*\(tool_use\), expected one named default"):
        load_chat_template(model_folder(tmp_path / "m", {"chat_template": several[:1]}), None)


def test_it_is_read_from_an_object_store(tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    folder = Path(model_folder(tmp_path / "m", {**SPECIAL}, CHATML))
    for file in folder.iterdir():
        store.pipe_file(f"/chat-model/{file.name}", file.read_bytes())
    found = load_chat_template("memory://chat-model", None)
    assert (found.text, found.special_tokens) == (CHATML, SPECIAL)


@pytest.mark.parametrize(
    ("config", "jinja", "says"),
    [
        (None, None, r"has no chat template \(no chat_template.jinja, .* chat_template 'none' for plain text"),
        ({}, " ", "has no chat template"),
        ({"chat_template": "{% for %}"}, None, "in tokenizer_config.json that cannot be rendered"),
        ({}, "{{ raise_exception('never') }}", r"in chat_template.jinja that cannot be rendered \(never\)"),
        ({}, "{{ bos_token }}", "leaves out what the user says"),
        ([], None, "tokenizer_config.json that holds no JSON object"),
    ],
)
def test_a_model_without_a_chat_template_that_works_is_refused_in_one_line(tmp_path, config, jinja, says):
    folder = model_folder(tmp_path / "m", config, jinja)
    with pytest.raises(ModelError, match=says) as error:
        load_chat_template(folder, None)
    assert str(error.value).startswith(f"chat_template: 'model', and large_model_reference {folder!r}")
    assert "\n" not in str(error.value)


def test_special_tokens_of_an_unusual_spelling_are_remembered(tmp_path):
    tokenizer = Tokenizer(WordLevel({}, ""))
    tokenizer.add_special_tokens(["<|im_end|>", ">>TITLE<<"])
    assert load_chat_template(model_folder(tmp_path / "m", {}, CHATML), tokenizer).control_tokens == (">>TITLE<<",)


# Data


def test_only_datasets_with_a_chat_template_have_messages(tmp_path):
    row = {"id": "1", "prompt": "user: Hi?\nassistant:", "reference": None}
    write_dataset(tmp_path / "plain", "prompts", [row], Template())
    assert read_dataset(tmp_path / "plain", "prompts")[0] == [row]
    rows = [row | {"messages": json.dumps([said("user", "Hi?")])}, row | {"messages": None}]
    write_dataset(tmp_path / "chat", "prompts", rows, chat())
    assert read_dataset(tmp_path / "chat", "prompts")[0] == rows


def validate(tmp_path: Path, chat_template: str, prompts: list[dict], **options) -> dict[str, float]:
    pairs = [
        {"prompt": [said("user", f"Post {i}")], "chosen": [said("assistant", "good")],
         "rejected": [said("assistant", "bad")]}
        for i in range(40)
    ]  # fmt: skip
    config = {
        "preference_dataset": write_rows(tmp_path / "pairs.jsonl", pairs),
        "prompt_dataset": write_rows(tmp_path / "prompts.jsonl", prompts),
        "eval_dataset": write_rows(
            tmp_path / "eval.jsonl", [{"prompt": f"Held out {i}", "completion": "x"} for i in (1, 2)]
        ),
        "large_model_reference": model_folder(tmp_path / "model", SPECIAL, GEMMA),
        "chat_template": chat_template,
        **options,
    }
    out = tmp_path / "out"
    names = ("preferences", "prompts", "evaluation", "demonstrations", "quarantine")
    files = {"report": out / "report.html", "findings": out / "findings.json"}
    return run(DataValidationConfig.parse(config, "data_validation"), **{n: out / n for n in names}, **files)


TURNS = [said("system", "Be kind."), said("user", "Hi?"), said("assistant", "Yes?"), said("user", "Bye.")]


def test_conversations_reach_the_later_stages_and_are_rendered_by_the_models_template(tmp_path):
    prompts = [{"messages": TURNS}, {"messages": [said("user", "Hello.")]}, {"messages": TURNS}]
    validate(tmp_path, "model", prompts, instruction="Sum up.")
    rows, manifest, template = read_dataset(tmp_path / "out" / "prompts", "prompts")
    assert manifest.columns == ["id", "prompt", "reference", "messages"]
    assert json.loads(rows[0]["messages"]) == TURNS
    assert rows[0]["prompt"] == "system: Be kind.\nuser: Hi?\nassistant: Yes?\nuser: Bye.\nassistant:"
    assert (template.chat_template, template.special_tokens, template.suffix) == (GEMMA, SPECIAL, "")
    assert template.render(rows[0]["prompt"], rows[0]["messages"]) == (
        "<s><start_of_turn>user\nSum up.\n\nBe kind.\n\nHi?<end_of_turn>\n<start_of_turn>model\nYes?<end_of_turn>\n"
        "<start_of_turn>user\nBye.<end_of_turn>\n<start_of_turn>model\n"
    )
    assert [row["id"] for row in rows] == [rows[0]["id"], rows[1]["id"], f"{rows[0]['id']}-2"]
    bare, _, _ = read_dataset(tmp_path / "out" / "evaluation", "prompts")
    assert bare[0]["messages"] is None
    assert template.render(bare[0]["prompt"], bare[0]["messages"]) == (
        "<s><start_of_turn>user\nSum up.\n\nHeld out 1<end_of_turn>\n<start_of_turn>model\n"
    )


def test_the_report_says_which_template_is_used_and_shows_a_prompt(tmp_path):
    tagged = [said("system", "Be kind."), said("user", "Hi <b>you</b>?")]
    validate(tmp_path, "model", [{"messages": tagged}, {"messages": TURNS}])
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"chat_template.jinja of {tmp_path / 'model'}" in page
    assert "&lt;start_of_turn&gt;user\nBe kind.\n\nHi &lt;b&gt;you&lt;/b&gt;?&lt;end_of_turn&gt;" in page
    assert "rendered as plain text" not in page
    assert MARK_START not in page
    found = json.loads((tmp_path / "out" / "findings.json").read_text())["template"]
    assert found["chat_template_found"] == f"chat_template.jinja of {tmp_path / 'model'}"
    validate(tmp_path, "none", [{"messages": TURNS}, {"messages": [said("user", "Hi?")]}])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "rendered as plain text" in page
    assert "none: plain text" in page


def test_a_conversation_that_the_template_refuses_is_put_in_quarantine(tmp_path):
    refused = [said("user", "a"), said("user", "b")]
    prompts = [{"messages": [said("user", f"Hi {i}?")]} for i in range(30)]
    metrics = validate(tmp_path, "model", [*prompts, {"messages": refused}])
    assert metrics["quarantined"] == 1
    rows, _, _ = read_dataset(tmp_path / "out" / "quarantine", "quarantine")
    assert (rows[0]["reason"], json.loads(rows[0]["row"])) == ("refused_by_template", {"messages": refused})
    assert validate(tmp_path, "none", [*prompts, {"messages": refused}])["quarantined"] == 0


def test_rows_of_flat_shapes_and_a_part_held_out_have_the_column_too(tmp_path):
    prompts = [{"input_text": f"Post number {i} here.\nTL;DR:"} for i in range(20)]
    validate(tmp_path, "model", prompts, eval_dataset="")
    for name in ("prompts", "evaluation"):
        rows, _, template = read_dataset(tmp_path / "out" / name, "prompts")
        assert rows
        assert all(row["messages"] is None for row in rows)
    assert template.suffix.strip() == "TL;DR:"


def one_prompt_in_every_layout(text: str) -> list[dict]:
    one, zero = ([said("assistant", answer)] for answer in ("one", "zero"))
    turn = said("user", text)
    return [
        {"prompt": text, "chosen": one, "rejected": zero},
        {"prompt": [turn], "chosen": one, "rejected": zero},
        {"chosen": [turn, *one], "rejected": [turn, *zero]},
    ]


@pytest.mark.parametrize("suffix", ["", "\nTL;DR:"])
def test_a_prompt_is_the_same_prompt_however_it_is_laid_out(tmp_path, suffix):
    text = "How do I boil rice?"
    pairs = [*one_prompt_in_every_layout(text), *one_prompt_in_every_layout(f" {text}\nTL;DR:" if suffix else text)]
    pairs += [{"prompt": f"Post {i}", **{n: pairs[0][n] for n in ("chosen", "rejected")}} for i in range(40)]
    options = {
        "preference_dataset": write_rows(tmp_path / "laid_out.jsonl", pairs),
        "eval_dataset": write_rows(tmp_path / "asked.jsonl", [{"prompt": text}, {"prompt": "Another?"}]),
        "demonstration_dataset": write_rows(
            tmp_path / "shown.jsonl",
            [{"messages": [said("user", each), said("assistant", "x")]} for each in (text, "A third?")],
        ),
        "suffix": suffix,
        "preference_eval_fraction": 0.01,
        "seed": 1,
    }
    prompts = [{"messages": [said("user", each)]} for each in (text, "A fourth?")]
    metrics = validate(tmp_path, "model", prompts, **options)
    assert metrics["duplicate_pairs"] == 5
    assert [metrics[f"shared_{name}"] for name in ("prompts", "with_preferences", "with_demonstrations")] == [1, 1, 1]
    metrics = validate(tmp_path, "model", prompts, **options, shared_prompts="quarantine")
    assert metrics["quarantined"] == 6 + 1 + 1
    assert [metrics[f"rows_{name}"] for name in ("preferences", "prompts", "demonstrations")] == [40, 1, 1]


def test_conversations_are_the_same_prompt_by_their_turns_less_the_suffix(tmp_path):
    ends = [said("user", "Bye."), said("user", "Bye.\nTL;DR:"), said("user", " Bye. "), said("user", "Hi?")]
    prompts = [{"messages": [*TURNS[:-1], end]} for end in ends] + [{"messages": [ends[0]]}, {"messages": TURNS[1:]}]
    template = chat(suffix="\nTL;DR:")
    keys = [template.body("", json.dumps(row["messages"])) for row in prompts]
    assert keys[0] == keys[1] == keys[2]
    assert len({*keys}) == 4
    assert keys[4] == template.body("Bye.") == template.body(" Bye. TL;DR:")


def test_a_model_without_a_chat_template_ends_the_run_before_data_is_read(tmp_path):
    model_folder(tmp_path / "base", {})
    with pytest.raises(ModelError, match="has no chat template"):
        validate(tmp_path, "model", [{"messages": TURNS}], large_model_reference=str(tmp_path / "base"))


def test_every_later_stage_reads_conversations_through_the_template(chat_folder, tmp_path, monkeypatch):
    from rlhf.bulk_inference import BulkInferenceConfig
    from rlhf.bulk_inference import stage as bulk_inference
    from rlhf.evaluator import EvaluatorConfig
    from rlhf.evaluator import stage as evaluator
    from rlhf.models.policy import Policy
    from rlhf.models.scoring import RewardModel
    from rlhf.ppo_trainer import PPOTrainerConfig
    from rlhf.ppo_trainer import stage as ppo_trainer
    from rlhf.reward_trainer import RewardTrainerConfig
    from rlhf.reward_trainer import stage as reward_trainer
    from rlhf.sft_trainer import SFTTrainerConfig
    from rlhf.sft_trainer import stage as sft_trainer

    template = Template(
        chat_template=CHAT_TEMPLATE,
        special_tokens={"bos_token": "<s>"},
        instruction="Sum up.",
        prompt_sequence_length=128,
        target_sequence_length=8,
    )
    turns = [
        [said("user", f"My guitar {i}<|im_end|>"), said("assistant", "Yes?"), said("user", "sold")] for i in range(8)
    ]
    rows = [{"id": str(i), "prompt": f"plain {i}", "messages": json.dumps(turn)} for i, turn in enumerate(turns)]
    expected = {template.render(row["prompt"], row["messages"]) for row in rows}

    def dataset(kind: str, **columns: str | None) -> str:
        split = [{"split": "eval" if i % 2 else "train"} if kind == "preferences" else {} for i in range(8)]
        write_dataset(
            tmp_path / kind, kind, [row | columns | more for row, more in zip(rows, split, strict=True)], template
        )
        return str(tmp_path / kind)

    read: dict[str, set[str]] = {"policy": set(), "reward_model": set()}
    encode_prompt, encode = Policy.encode_prompt, RewardModel.encode

    def spied_prompt(self, text):
        read["policy"].add(text)
        assert self.template == template
        return encode_prompt(self, text)

    def spied_pair(self, prompt, completion):
        read["reward_model"].add(prompt)
        assert self.template == template
        return encode(self, prompt, completion)

    monkeypatch.setattr(Policy, "encode_prompt", spied_prompt)
    monkeypatch.setattr(RewardModel, "encode", spied_pair)

    def check_read(*readers: str) -> None:
        assert {name: texts for name, texts in read.items() if texts} == dict.fromkeys(readers, expected)
        for texts in read.values():
            texts.clear()

    out = {name: str(tmp_path / name) for name in ("policy", "reward_model", "tuned_policy", "samples", "report")}
    logs, policy, reward_model = str(tmp_path / "logs"), out["policy"], out["reward_model"]
    prompts = dataset("prompts", reference="my guitar")
    sft_trainer.run(
        SFTTrainerConfig(train_steps=1, batch_size=2),
        demonstrations=dataset("demonstrations", completion="my guitar"),
        base_model=str(chat_folder), policy=policy, report=out["report"], tensorboard=logs,
    )  # fmt: skip
    check_read("policy")
    reward_trainer.run(
        RewardTrainerConfig(train_steps=1, batch_size=2),
        preferences=dataset("preferences", chosen="my guitar", rejected="no"),
        policy=policy, reward_model=reward_model, scores=str(tmp_path / "scores"),
        calibration=str(tmp_path / "calibration"), report=out["report"], tensorboard=logs,
    )  # fmt: skip
    check_read("reward_model")
    ppo_trainer.run(
        PPOTrainerConfig(train_steps=1, batch_size=8, minibatch_size=8),
        prompts=prompts, policy=policy, reward_model=reward_model, tuned_policy=out["tuned_policy"],
        samples=out["samples"], report=out["report"], tensorboard=logs,
    )  # fmt: skip
    check_read("policy", "reward_model")
    for model in ("policy", "tuned_policy"):
        predictions = str(tmp_path / f"{model}.jsonl")
        bulk_inference.run(BulkInferenceConfig(), prompts=prompts, model=out[model], predictions=predictions)
        check_read("policy")
    evaluator.run(
        EvaluatorConfig(),
        predictions_before=str(tmp_path / "policy.jsonl"), predictions_after=str(tmp_path / "tuned_policy.jsonl"),
        evaluation=prompts, reward_model=reward_model, report=out["report"],
    )  # fmt: skip
    check_read("reward_model")
    assert MARK_START not in Path(out["report"]).read_text()


def test_rendering_needs_no_transformers():
    code = "import sys, rlhf.data_validation.stage; sys.exit(bool({'transformers', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
