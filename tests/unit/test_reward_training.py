"""How a reward model is trained: its loss, its batches, which weights are kept, what is tuned and what is saved."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf.data.store import read_dataset
from rlhf.errors import ConfigError, ModelError
from rlhf.models.card import ModelCard
from rlhf.models.policy import Policy
from rlhf.models.scoring import RewardModel
from rlhf.reward_trainer import RewardTrainerConfig, stage
from rlhf.reward_trainer.batches import training_order
from rlhf.reward_trainer.pairs import encode_pairs
from rlhf.reward_trainer.trainer import PairwiseTrainer, pairwise_loss
from rlhf.tracking import Tracker
from rlhf.training.run import Evaluation, fit
from tests import reward


@pytest.fixture
def preferences(tmp_path):
    return reward.write_preferences(tmp_path, reward.rows())


def test_the_loss_is_that_of_the_papers():
    chosen, rejected, none = torch.tensor([2.0, 0.0]), torch.tensor([0.5, 1.0]), torch.zeros(2)
    plain = pairwise_loss(chosen, rejected, none, 0.0)
    assert plain.tolist() == pytest.approx([math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(1.0))])
    margin = pairwise_loss(chosen, rejected, torch.tensor([1.0, 2.0]), 0.0)
    assert margin.tolist() == pytest.approx([math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(3.0))])
    smooth, reverse = pairwise_loss(chosen, rejected, none, 0.1), pairwise_loss(rejected, chosen, none, 0.0)
    assert smooth.tolist() == pytest.approx((0.9 * plain + 0.1 * reverse).tolist())


def test_smoothed_labels_keep_the_best_gap_finite():
    gap = torch.tensor([0.0], requires_grad=True)
    optimiser = torch.optim.SGD([gap], lr=5.0)
    for _ in range(500):
        optimiser.zero_grad()
        pairwise_loss(gap, torch.zeros(1), torch.zeros(1), 0.1).sum().backward()
        optimiser.step()
    assert gap.item() == pytest.approx(math.log(0.9 / 0.1), abs=1e-3), "sure of the label in nine cases of ten"


def trainer_of(preferences, base, folder, **options) -> PairwiseTrainer:
    rows, _, template = read_dataset(preferences, "preferences")
    config = RewardTrainerConfig(**{"batch_size": 16, "train_steps": 8, "learning_rate": 1e-3, **options})
    torch.manual_seed(0)
    model, _ = RewardModel.to_train(base, template, config)
    pairs, _ = encode_pairs([row for row in rows if row["split"] == "train"], template, model)
    order = training_order([pair.key for pair in pairs], config.batch_size, config.train_steps, 0)
    encoded = [(pair.chosen, pair.rejected, pair.margin or 0.0) for pair in pairs]
    return PairwiseTrainer(model, config, encoded, order, str(folder))


@pytest.mark.parametrize("base", ["llama", "pythia", "bert", "deberta", "t5"])
def test_a_batch_cut_into_parts_has_the_gradient_of_the_whole(base, request, preferences, tmp_path):
    gradients, losses = [], []
    for tokens in (10**6, 100):
        folder = request.getfixturevalue(f"{base}_folder")
        trainer = trainer_of(preferences, folder, tmp_path / str(tokens), tokens_per_forward=tokens)
        batch = next(iter(trainer.get_train_dataloader()))
        assert (len(batch["parts"]) == 1) == (tokens > 100)
        losses.append(trainer.training_step(trainer.model, batch).item())
        gradients.append({name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_no_text_is_padded_beyond_the_longest_of_its_part(preferences, llama_folder, tmp_path):
    trainer = trainer_of(preferences, llama_folder, tmp_path, tokens_per_forward=400)
    for part in next(iter(trainer.get_train_dataloader()))["parts"]:
        assert part["attention_mask"].sum(1).max() == part["input_ids"].shape[1]


@pytest.mark.parametrize("base", ["pythia", "bert", "deberta"])
def test_dropout_is_off_but_an_adapters_own(base, request, preferences, tmp_path):
    folder = request.getfixturevalue(f"{base}_folder")
    trainer = trainer_of(preferences, folder, tmp_path, tuning="lora", lora={"rank": 4, "dropout": 0.3})
    dropouts = {n: m.p for n, m in trainer.model.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert {p for name, p in dropouts.items() if "lora" in name} == {0.3}
    assert {p for name, p in dropouts.items() if "lora" not in name} <= {0.0}
    full = trainer_of(preferences, folder, tmp_path)
    batch = next(iter(full.get_train_dataloader()))
    assert full.training_step(full.model, batch).item() == full.training_step(full.model, batch).item()


def test_margins_of_the_data_are_trained_for(llama_folder, tmp_path):
    rows = [{**row, "margin": 3.0 if int(row["id"]) % 3 else None} for row in reward.rows()]
    preferences = reward.write_preferences(tmp_path, rows)
    gaps = {}
    for scale in (0.0, 1.0):
        metrics = reward.train(preferences, llama_folder, tmp_path / str(scale), margin_scale=scale, train_steps=20)
        gaps[scale] = metrics["loss_seen"]
    assert gaps[1.0] < gaps[0.0], "with a margin to reach, scores are driven further apart"


def run_with(accuracies: list[float], trainer: PairwiseTrainer, tmp_path, patience: int = 0):
    """Train one step between evaluations that give `accuracies`; the state, and the weights seen at each."""
    seen, left = [], iter(accuracies)

    def measure():
        seen.append(torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()]))
        return {"accuracy": next(left)}

    def fell(best, now):
        return best["accuracy"] - now["accuracy"] > 0.05

    evaluation = Evaluation(measure, 1, key=lambda found: found["accuracy"], fell=fell, patience=patience)
    state = fit(
        trainer,
        trainer._settings,
        stage="test",
        tags={},
        tracker=Tracker(None),
        checkpoints=None,
        evaluation=evaluation,
    )
    return state, seen


def test_the_weights_with_the_best_accuracy_are_kept(preferences, llama_folder, tmp_path):
    trainer = trainer_of(preferences, llama_folder, tmp_path, train_steps=4)
    state, seen = run_with([0.5, 0.9, 0.6, 0.7], trainer, tmp_path)
    kept = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    assert state.best_step == 2
    assert torch.equal(kept, seen[1])
    assert not torch.equal(kept, seen[3])


def test_training_stops_where_accuracy_falls_and_not_where_it_wavers(preferences, llama_folder, tmp_path):
    falls = [0.5, 0.9, 0.6, 0.7, 0.8, 0.7, 0.7, 0.7]
    state, _ = run_with(falls, trainer_of(preferences, llama_folder, tmp_path), tmp_path, patience=3)
    assert (state.step, state.stopped_early, state.best_step) == (5, True, 2)
    wavers = [0.5, 0.9, 0.86, 0.7, 0.88, 0.7, 0.7, 0.87]
    state, _ = run_with(wavers, trainer_of(preferences, llama_folder, tmp_path), tmp_path, patience=3)
    assert (state.step, state.stopped_early) == (8, False)


def test_early_stopping_is_told_by_the_stage(llama_folder, tmp_path):
    from rlhf.reward_trainer.stage import _fell

    best = {"reward_model/eval_accuracy": 0.8}
    assert not _fell(best, {"reward_model/eval_accuracy": 0.77}, 100), "within a standard error of 0.04"
    assert _fell(best, {"reward_model/eval_accuracy": 0.75}, 100)
    assert _fell(best, {"reward_model/eval_accuracy": 0.77}, 1000)


def test_pairs_that_choose_the_weights_are_not_trained_on(preferences, llama_folder, tmp_path):
    metrics = reward.train(preferences, llama_folder, tmp_path / "out", train_steps=2, selection_fraction=0.25)
    assert metrics["selection_pairs"] == 32
    assert metrics["pairs"] == 96
    assert metrics["held_out"] == 32


@pytest.fixture
def adapted_policy(llama_folder, tmp_path):
    """An SFT policy that is an adapter on the base model."""
    config = RewardTrainerConfig(tuning="lora", lora={"rank": 8})
    policy, trainee = Policy.to_train(llama_folder, reward.TEMPLATE, config)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    policy.save(
        tmp_path / "adapted",
        ModelCard(kind="policy", base=trainee.base, template_digest=reward.TEMPLATE.digest),
    )
    return tmp_path / "adapted"


def test_a_reward_model_over_an_adapted_policy_stands_on_the_same_base(
    adapted_policy, llama_folder, preferences, tmp_path
):
    reward.train(preferences, adapted_policy, tmp_path / "out", tuning="lora", train_steps=2, learning_rate=1e-9)
    saved = tmp_path / "out/reward_model"
    config = json.loads((saved / "adapter_config.json").read_text())
    assert (
        config["base_model_name_or_path"] == str(llama_folder) == json.loads((saved / "rlhf.json").read_text())["base"]
    )
    assert config["r"] == 8
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapted_policy, saved))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-6, rtol=0)
    assert any("score" in name for name in after.keys() - before.keys()), "the head is saved with it"


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_policys_adapter_is_in_the_reward_model_that_starts_from_it(tuning, adapted_policy, llama_folder):
    model, _ = RewardModel.to_train(adapted_policy, reward.TEMPLATE, RewardTrainerConfig(tuning=tuning))
    policy = Policy.load(adapted_policy, reward.TEMPLATE)
    bare = Policy.load(llama_folder, reward.TEMPLATE)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    hidden = [
        m(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        for m in (model.model.eval(), policy.model, bare.model)
    ]
    torch.testing.assert_close(hidden[0], hidden[1], atol=1e-5, rtol=0)
    assert (hidden[1] - hidden[2]).abs().max() > 1e-3, "the adapter does something"


def test_an_adapter_over_another_stages_weights_is_merged_unless_that_is_refused(llama_folder, preferences, tmp_path):
    policy = Policy.load(llama_folder)
    card = ModelCard(kind="policy", base=str(llama_folder), template_digest=reward.TEMPLATE.digest)
    policy.save(tmp_path / "policy", card)
    reward.train(preferences, tmp_path / "policy", tmp_path / "out", tuning="lora", train_steps=2)
    assert not (tmp_path / "out/reward_model/adapter_config.json").exists()
    assert (tmp_path / "out/reward_model/model.safetensors").exists()
    with pytest.raises(ConfigError, match="which only an earlier stage's output holds; use 'merged' or 'auto'"):
        reward.train(preferences, tmp_path / "policy", tmp_path / "out", tuning="lora", save="adapter")


@pytest.mark.parametrize("lost", ["lora", "score"])
def test_an_adapter_whose_weights_do_not_arrive_is_refused(lost, llama_folder, preferences, tmp_path):
    """In a public project LoRA weights were "not used" on reload, and PPO ran against an untrained head."""
    reward.train(preferences, llama_folder, tmp_path / "out", tuning="lora", train_steps=2)
    file = tmp_path / "out/reward_model/adapter_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if lost in name)
    value = weights.pop(name)
    save_file(weights, file)
    refused = "did not arrive in the base model|cannot be put on its base"
    with pytest.raises(ModelError, match=refused):
        RewardModel.load(tmp_path / "out/reward_model")
    save_file({**weights, f"{name}.renamed": value}, file)
    with pytest.raises(ModelError, match=refused):
        RewardModel.load(tmp_path / "out/reward_model")


def test_an_adapter_that_no_stage_wrote_is_refused(llama_folder, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"PEFT adapter without rlhf\.json; merge it into its base"):
        RewardModel.load(tmp_path / "adapter")


def test_four_bits_where_there_are_no_kernels_is_an_error_that_says_what_to_do(monkeypatch):
    import importlib.util

    import bitsandbytes

    from rlhf.models.tuning import quantisation

    monkeypatch.setattr(bitsandbytes, "supported_torch_devices", {"cuda", "xpu"})
    with pytest.raises(
        ModelError, match=r"no 4-bit kernels for the device 'cpu', only for cuda, xpu; use tuning 'lora'"
    ):
        quantisation(torch.device("cpu"), [])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="bitsandbytes is not installed"):
        quantisation(torch.device("cuda"), [])


@pytest.mark.parametrize(("has_it", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_what_is_held_in_4_bits_computes_in_bfloat16_only_where_the_gpu_has_it(has_it, expected, monkeypatch):
    from rlhf.models.tuning import quantisation

    monkeypatch.setattr("bitsandbytes.supported_torch_devices", {"cuda"})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it)
    assert quantisation(torch.device("cuda"), []).bnb_4bit_compute_dtype == expected


def test_with_qlora_only_the_adapter_and_the_head_are_trained(llama_folder, preferences, tmp_path):
    trainer = trainer_of(preferences, llama_folder, tmp_path, tuning="qlora")
    trained = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert all("lora_" in name or "score" in name for name in trained)
    assert any("score" in name for name in trained)
    assert {str(p.dtype) for n, p in trainer.model.named_parameters() if n in trained} == {"torch.float32"}
    linear = {type(m).__name__ for n, m in trainer.model.named_modules() if n.endswith("q_proj.base_layer")}
    assert linear == {"Linear4bit"}


@pytest.mark.parametrize(("before", "after"), [("full", "full"), ("lora", "lora"), ("lora", "full"), ("full", "lora")])
def test_a_head_that_was_trained_before_is_not_drawn_anew(before, after, llama_folder, preferences, tmp_path):
    def head(name: str) -> torch.Tensor:
        weights = load_file(next((tmp_path / name / "reward_model").glob("*.safetensors")))
        return next(value for key, value in weights.items() if "score" in key)

    reward.train(preferences, llama_folder, tmp_path / "one", tuning=before)
    options = {"base_model": str(tmp_path / "one/reward_model"), "train_steps": 1, "learning_rate": 1e-9, "seed": 3}
    reward.train(preferences, llama_folder, tmp_path / "two", tuning=after, **options)
    torch.testing.assert_close(head("one"), head("two"), atol=1e-6, rtol=0)


@pytest.mark.parametrize("before", ["lora", "qlora"])
def test_full_tuning_of_an_adapted_model_trains_every_weight(before, llama_folder, preferences, tmp_path):
    reward.train(preferences, llama_folder, tmp_path / "one", tuning=before, train_steps=2)
    model, _ = RewardModel.to_train(tmp_path / "one/reward_model", reward.TEMPLATE, RewardTrainerConfig())
    assert all(parameter.requires_grad for parameter in model.model.parameters())
    assert {str(parameter.dtype) for parameter in model.model.parameters()} == {"torch.float32"}


def test_an_adapter_fitted_to_four_bits_is_not_put_on_a_whole_base(llama_folder, preferences, tmp_path):
    reward.train(preferences, llama_folder, tmp_path / "one", tuning="qlora", train_steps=2)
    base = {"base_model": str(tmp_path / "one/reward_model"), "train_steps": 1, "learning_rate": 1e-9}
    with pytest.raises(ConfigError, match=r"tuning: found 'lora', but .* in 4 bits; use 'qlora', or 'full'"):
        reward.train(preferences, llama_folder, tmp_path / "two", tuning="lora", **base)
    reward.train(preferences, llama_folder, tmp_path / "two", tuning="full", **base)
    rows = [row for row in reward.rows() if row["split"] == "eval"]
    texts = [reward.TEMPLATE.render(row["prompt"]) for row in rows], [row["chosen"] for row in rows]
    one, two = (RewardModel.load(tmp_path / name / "reward_model").score(*texts) for name in ("one", "two"))
    assert two == pytest.approx(one, abs=0.05), "as near as arithmetic in 4 bits and its rounded weights in 32 are"


def test_the_base_learning_rate_is_the_papers_and_for_adapters_the_old_pipelines():
    assert RewardTrainerConfig().peak_learning_rate == 3e-6
    assert RewardTrainerConfig(tuning="lora", learning_rate_multiplier=2.0).peak_learning_rate == pytest.approx(2e-4)
    assert RewardTrainerConfig(tuning="qlora", learning_rate=5e-5).peak_learning_rate == 5e-5
    assert (RewardTrainerConfig().lora.rank, RewardTrainerConfig(lora="rank-16").lora.rank) == (4, 16)


def test_what_is_logged_for_kfp_is_finite_and_of_the_right_size(llama_folder, preferences, tmp_path):
    from rlhf.job import Job

    reward.train(preferences, llama_folder, tmp_path / "out", train_steps=4)
    logged = {}
    metrics = SimpleNamespace(
        path=str(tmp_path / "out/calibration.json"),
        log_roc_curve=lambda *curve: logged.update(roc=curve),
        log_confusion_matrix=lambda *matrix: logged.update(confusion=matrix),
    )
    Job(None).log_classification(metrics)
    assert all(math.isfinite(value) for part in logged["roc"] for value in part)
    assert sum(map(sum, logged["confusion"][1])) == 32


def test_what_was_seen_is_what_the_weights_that_are_kept_were_trained_on():
    config = RewardTrainerConfig(batch_size=4, train_steps=20)
    pairs = [SimpleNamespace(key=index) for index in range(32)]
    order = training_order([pair.key for pair in pairs], 4, 20, config.seed)
    seen = stage._trained_on(pairs, config, steps=3)
    assert [pair.key for pair in seen] == order[:12]
    assert {pair.key for pair in stage._trained_on(pairs, config, steps=20)} == set(range(32)), "each once"
    assert len(stage._trained_on(pairs, config, steps=20)) == 32
