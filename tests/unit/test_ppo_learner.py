"""One update of PPO: what it computes on, and that it is right however it is cut up."""

import importlib.util
import itertools
import math
from functools import partial

import pytest
import torch
from transformers import (
    AutoTokenizer,
    M2M100Config,
    M2M100Model,
    OPTConfig,
    OPTForSequenceClassification,
    PhimoeConfig,
    PhimoeForCausalLM,
    SwitchTransformersConfig,
)
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersTop1Router

from rlhf.data.template import Template
from rlhf.errors import ConfigError, TrainingError
from rlhf.models import sparing
from rlhf.models.adapting import switch_dropout_off, train_without_draws
from rlhf.models.card import ModelCard
from rlhf.models.scoring import RewardModel
from rlhf.ppo import maths
from rlhf.ppo.learner import Learner
from rlhf.ppo.networks import Batch, Episode, Networks
from rlhf.reward_trainer.config import RewardTrainerConfig
from rlhf.training import processes
from tests.models import untrained_reward_model
from tests.ppo import (
    RESPONSE,
    config_of,
    episodes_of,
    gradients,
    learner_of,
    move_critic,
    policy_of,
    some_rewards,
)


def estimated(learner, seed: int = 0):
    move_critic(learner)
    episodes = episodes_of(learner.networks.policy, seed=seed)
    return learner.estimate(episodes, some_rewards(len(episodes)), learner.config.kl_coeff)


def test_ratio_is_exactly_one_before_the_first_update(policy_folder):
    learner = learner_of(policy_folder)
    rollout = estimated(learner)
    for rows, batch, _ in learner._batches(rollout.episodes, range(8)):
        hidden = learner.networks.hidden(batch)
        logits = learner.networks.logits(hidden[batch.spoken], learner.config.temperature)
        now = maths.chosen_log_probs(logits, batch.tokens)
        assert torch.equal(torch.exp(now - rollout.log_probs[rows][rollout.mask[rows].bool()]), torch.ones_like(now))
    measured = learner.gradient(rollout, range(8))
    assert measured["update_kl"] == 0
    assert measured["clip_fraction"] == 0
    assert rollout.kl.abs().max() < 1e-5, "the policy is still the reference"


@pytest.mark.parametrize("bias", [False, True])
def test_log_probs_are_those_of_the_whole_model_read_one_by_one(policy_folder, bias):
    learner = learner_of(policy_folder)
    if bias:
        output = learner.networks.base.get_output_embeddings()
        output.bias = torch.nn.Parameter(torch.randn(len(output.weight), generator=torch.Generator().manual_seed(2)))
    rollout = estimated(learner)
    policy = learner.networks.policy
    for row, episode in enumerate(rollout.episodes):
        ids = torch.tensor([[*episode.prompt, *episode.response]])
        if policy.kind == "causal":
            logits = policy.model(input_ids=ids).logits[0, len(episode.prompt) - 1 : -1]
        else:
            start = policy.model.generation_config.decoder_start_token_id
            decoder = torch.tensor([[start, *episode.response[:-1]]])
            logits = policy.model(input_ids=torch.tensor([episode.prompt]), decoder_input_ids=decoder).logits[0]
        expected = torch.log_softmax(policy.tempered(logits, 0.7), -1)[range(len(episode.response)), episode.response]
        assert torch.allclose(rollout.log_probs[row, : len(episode.response)], expected, atol=1e-5)


@pytest.mark.parametrize("score_position", ["eos", "after_eos"])
def test_padding_and_the_order_of_episodes_change_nothing(policy_folder, score_position):
    options = {"score_position": score_position, "kl_coeff": 0.2}
    alone = learner_of(policy_folder, microbatch_tokens=1, **options)
    together = learner_of(policy_folder, microbatch_tokens=10**6, **options)
    rollout = estimated(alone)
    order = [5, 2, 7, 0, 1, 3, 6, 4]
    move_critic(together)
    shuffled = together.estimate([rollout.episodes[i] for i in order], some_rewards(8)[order], 0.2)
    for name in ("log_probs", "values", "kl", "advantages", "returns", "mask", "value_mask"):
        width = getattr(shuffled, name).shape[1]
        assert torch.allclose(getattr(shuffled, name), getattr(rollout, name)[order, :width], atol=2e-5), name


def test_gradients_accumulated_over_micro_batches_are_those_of_the_whole_minibatch(policy_folder):
    found = []
    for microbatch_tokens, logits_at_once in ((10**6, 10**6), (60, 10**6), (60, 5)):
        learner = learner_of(policy_folder, microbatch_tokens=microbatch_tokens, logits_at_once=logits_at_once)
        rollout = estimated(learner)
        measured = learner.gradient(rollout, range(8))
        found.append((gradients(learner), measured))
    for gradient, measured in found[1:]:
        assert torch.allclose(gradient, found[0][0], atol=1e-6)
        assert measured == pytest.approx(found[0][1], abs=1e-6)
    assert found[0][0].abs().max() > 1e-3


@pytest.mark.parametrize("score_position", ["eos", "after_eos"])
def test_what_stands_under_the_mask_moves_no_loss_and_no_gradient(policy_folder, score_position):
    learner = learner_of(policy_folder, score_position=score_position, microbatch_tokens=60, logits_at_once=5)
    rollout = estimated(learner)
    clean = learner.gradient(rollout, range(8)), gradients(learner)
    for name, mask in (
        *((name, rollout.mask) for name in ("log_probs", "advantages")),
        *((name, rollout.value_mask) for name in ("values", "returns")),
    ):
        setattr(rollout, name, torch.where(mask.bool(), getattr(rollout, name), torch.nan))
    assert not rollout.mask.all()
    assert learner.gradient(rollout, range(8)) == clean[0]
    assert torch.equal(gradients(learner), clean[1])


@pytest.mark.parametrize("critic", ["shared", "own"])
def test_the_gradient_is_that_of_the_loss_as_it_is_written(policy_folder, critic):
    """The loss over full logits of every position, by autograd alone, against micro-batches and pieces."""
    learner = learner_of(policy_folder, critic=critic, microbatch_tokens=60, logits_at_once=5, entropy_coeff=0.01)
    rollout = estimated(learner)
    rollout.log_probs = rollout.log_probs + 0.3 * torch.randn(
        rollout.log_probs.shape, generator=torch.Generator().manual_seed(3)
    )
    networks, config = learner.networks, learner.config
    learner.gradient(rollout, range(8))
    ours = gradients(learner)
    learner.optimizer.zero_grad()
    batch = Batch.of(networks.policy, rollout.episodes, [len(e.response) for e in rollout.episodes])
    hidden = networks.hidden(batch)
    logits = networks.logits(hidden, config.temperature)
    real = rollout.mask.bool()
    now = torch.log_softmax(logits, -1).gather(-1, batch.tokens[:, None])[:, 0]
    ratio = torch.exp(now - rollout.log_probs[real])
    advantage = rollout.advantages[real]
    policy_loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)).mean()
    values, old, returns = networks.values(hidden, batch), rollout.values[real], rollout.returns[real]
    near = old + (values - old).clamp(-0.2, 0.2)
    value_loss = 0.5 * torch.max((values - returns) ** 2, (near - returns) ** 2).mean()
    probabilities = torch.softmax(logits, -1)
    entropy = -(probabilities * torch.log_softmax(logits, -1).clamp_min(-1e9)).sum(-1).mean()
    (policy_loss + 0.1 * value_loss - 0.01 * entropy).backward()
    assert torch.allclose(ours, gradients(learner), atol=1e-6)


def test_minibatches_are_real(llama_folder):
    learner = learner_of(llama_folder, minibatch_size=3, epochs=2)
    rollout = estimated(learner)
    seen = []
    gradient = learner.gradient
    learner.gradient = lambda rollout, rows: seen.append(sorted(rows)) or gradient(rollout, rows)
    steps = learner.improve(rollout, 1)["steps"]
    assert steps == 6
    assert sorted(itertools.chain(*seen[:3])) == sorted(itertools.chain(*seen[3:])) == list(range(8))
    assert seen[:3] != seen[3:], "each epoch in another order"


def test_the_score_is_paid_where_the_config_says(llama_folder):
    at_eos, after_eos = (learner_of(llama_folder, score_position=where) for where in ("eos", "after_eos"))
    policy = at_eos.networks.policy
    episodes = [Episode([7, 8], [9, policy.eos]), Episode([7], [9] * RESPONSE)]
    for learner, positions in ((at_eos, [2, RESPONSE]), (after_eos, [3, RESPONSE])):
        rollout = learner.estimate(episodes, torch.tensor([1.0, 2.0]), 0.0)
        assert rollout.value_mask.sum(1).tolist() == positions
        assert rollout.mask.sum(1).tolist() == [2, RESPONSE]
        for row, last in enumerate(positions):
            assert rollout.returns[row, last - 1].item() == pytest.approx(row + 1.0)


def test_kl_is_never_negative_in_expectation_and_both_estimators_are_unbiased():
    """Exact enumeration: every token of a toy vocabulary, weighed with its probability under the policy."""
    for seed in range(20):
        logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
        policy, reference = torch.log_softmax(logits, -1)
        exact = (policy.exp() * (policy - reference)).sum().item()
        for estimator in ("k1", "k3"):
            kl = maths.kl_penalty(policy[None], reference[None], torch.ones(1, 9), estimator)
            expected = (policy.exp() * kl[0]).sum().item()
            assert expected == pytest.approx(exact)
            assert expected >= 0
        assert (maths.kl_penalty(policy[None], reference[None], torch.ones(1, 9), "k3") >= 0).all()


def test_the_adaptive_coefficient_rises_above_its_target_and_falls_below():
    assert maths.adapted_kl_coeff(0.1, 12, 6, 10_000, 512) == pytest.approx(0.1 * (1 + 0.2 * 512 / 10_000))
    assert maths.adapted_kl_coeff(0.1, 6, 6, 10_000, 512) == pytest.approx(0.1)
    assert maths.adapted_kl_coeff(0.1, 0, 6, 10_000, 512) == pytest.approx(0.1 * (1 - 0.2 * 512 / 10_000))


def test_an_update_that_went_too_far_is_left(llama_folder):
    learner = learner_of(llama_folder, learning_rate=0.05, epochs=4, minibatch_size=8, stop_at_update_kl=0.01)
    rollout = estimated(learner)
    assert learner.improve(rollout, 1)["steps"] < 4


def test_a_step_that_is_not_finite_is_skipped_counted_and_fatal_past_the_limit(llama_folder):
    learner = learner_of(llama_folder, max_skipped_steps=1, minibatch_size=8, epochs=1)
    rollout = estimated(learner)
    rollout.advantages = rollout.advantages * math.nan
    before = [parameter.clone() for _, parameter in learner.networks.named_parameters()]
    learner.improve(rollout, 1)
    assert learner.skipped_steps == 1
    after = [parameter for _, parameter in learner.networks.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with pytest.raises(TrainingError, match="max_skipped_steps"):
        learner.improve(rollout, 2)


def test_a_step_that_is_skipped_is_in_no_mean(llama_folder, monkeypatch):
    learner = learner_of(llama_folder, minibatch_size=4, epochs=2)
    rollout, seen = estimated(learner), []
    gradient = learner.gradient

    def watched(*given):
        seen.append(gradient(*given))
        if len(seen) > 1:
            next(parameter for _, parameter in learner.networks.named_parameters()).grad.fill_(math.nan)
        return seen[-1]

    monkeypatch.setattr(learner, "gradient", watched)
    measured = learner.improve(rollout, 1)
    assert (learner.skipped_steps, len(seen), measured["steps"]) == (3, 4, 1)
    assert measured["value_loss"] == seen[0]["value_loss"] > 0
    monkeypatch.setattr(learner, "_step", lambda measured: False)
    assert math.isnan(learner.improve(rollout, 2)["value_loss"])


def test_entropy_is_that_of_what_can_be_sampled():
    logits = torch.tensor([[0.0, 0.0, float("-inf")], [5.0, float("-inf"), float("-inf")]])
    assert maths.entropy(logits).tolist() == pytest.approx([math.log(2), 0.0], abs=1e-6)


def test_a_critic_of_its_own_starts_from_the_reward_model_where_that_reads_the_same_tokens(llama_folder, bert_folder):
    config = config_of(critic="own")
    for folder, alike in ((llama_folder, True), (bert_folder, False)):
        torch.manual_seed(0)
        reward_model = untrained_reward_model(folder)
        with torch.no_grad():
            for parameter in reward_model.model.parameters():
                parameter.add_(0.01)
        networks = Networks(policy_of(llama_folder, config), config, reward_model)
        embedding = networks.critic.get_input_embeddings().weight
        same = embedding.shape == reward_model.model.get_input_embeddings().weight.shape and torch.equal(
            embedding, reward_model.model.get_input_embeddings().weight
        )
        assert same == alike


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_critic_of_its_own_values_a_finished_text_as_the_reward_model_does(tuning, llama_folder, tmp_path):
    torch.manual_seed(0)
    reward_model, trainee = RewardModel.to_train(llama_folder, Template(), RewardTrainerConfig(tuning=tuning))
    for parameter in filter(lambda p: p.requires_grad, reward_model.model.parameters()):
        torch.nn.init.normal_(parameter, std=0.1)
    card = ModelCard(kind="reward_model", base=trainee.base, template_digest=Template().digest, score_shift=-1.5)
    reward_model.save(tmp_path, card)
    config = config_of(critic="own", tuning=tuning, reward_model_weight=2.0, score_position="after_eos")
    policy = policy_of(llama_folder, config)
    load = RewardModel.load if tuning == "full" else partial(RewardModel.beside, policy.model)
    reward_model = load(tmp_path, Template())
    learner = Learner(config, Networks(policy, config, reward_model), RESPONSE)
    text, answer = "My brother sold my guitar.\nTL;DR:", "my brother"
    said = policy.encode_completion(f" {answer}", RESPONSE)
    rollout = learner.estimate([Episode(policy.encode_prompt(text), said)], torch.zeros(1), 0.0)
    last = rollout.values[0, len(said)].item()
    assert last == pytest.approx(2 * reward_model.score([text], [answer])[0], abs=1e-5)
    assert abs(last + 3.0) > 1e-3, "not the shift alone"
    scaled = config.model_copy(update={"reward_scaling": "running"})
    if tuning == "full":
        assert not Networks(policy, scaled, reward_model).value_head.weight.any()


def test_moments_come_back_to_their_weights_though_the_optimiser_has_them_in_another_order(llama_folder, monkeypatch):
    with monkeypatch.context() as patched:  # as where layers are spread over processes
        patched.setattr("rlhf.ppo.learner.is_spread", lambda parameter: parameter.dim() == 1)
        several = learner_of(llama_folder)
    several.improve(estimated(several), 1)
    alone = learner_of(llama_folder)
    alone.load_state(*several.state())
    found, expected = (dict(learner.networks.named_parameters()) for learner in (alone, several))
    for name, parameter in expected.items():
        for moment in ("exp_avg", "exp_avg_sq", "step"):
            kept = alone.optimizer.state[found[name]][moment]
            assert torch.equal(kept, several.optimizer.state[parameter][moment]), (name, moment)
    rates = {group["lr"] for learner in (alone, several) for group in learner.optimizer.param_groups}
    assert len(rates) == 1
    assert rates != {alone.config.peak_learning_rate}, "it goes on falling from where it was"


def test_every_process_calls_an_output_layer_that_is_spread_as_often(policy_folder, monkeypatch):
    learner = learner_of(policy_folder, logits_at_once=5)
    rollout = estimated(learner)
    expected = learner.gradient(rollout, range(8)), gradients(learner), rollout.log_probs
    calls = []
    learner.networks.base.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(learner.networks, "is_sharded", True)
    monkeypatch.setattr(learner.networks, "uses_deepspeed", True)
    monkeypatch.setattr(processes, "gather", lambda mine: [mine, 100] if isinstance(mine, int) else [mine])
    micro_batches = 100  # the other process has as many of these, too
    again = learner.gradient(rollout, range(8))
    assert len(calls) == 100 * micro_batches
    assert again == pytest.approx(expected[0], abs=1e-6)
    assert torch.allclose(gradients(learner), expected[1], atol=1e-6)


@pytest.mark.parametrize("score_position", ["eos", "after_eos"])
def test_an_encoder_decoder_reads_no_more_of_a_completion_than_it_has_positions_for(t5_folder, score_position):
    learner = learner_of(t5_folder, score_position=score_position)
    policy = learner.networks.policy
    said = policy.generate([policy.encode_prompt("a")], RESPONSE, 1.0, draws=torch.full((1, RESPONSE), 0.5))[0]
    episode = Episode(policy.encode_prompt("a"), (said * RESPONSE)[:RESPONSE])
    batch = Batch.of(policy, [episode], [learner._values(episode)])
    assert batch.responses.shape[1] == RESPONSE


def test_a_critic_is_as_wide_as_the_reward_models_head(llama_folder, tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "opt"
    small = {"hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    model = OPTForSequenceClassification(
        OPTConfig(
            vocab_size=len(tokenizer),
            word_embed_proj_dim=16,
            num_labels=1,
            pad_token_id=tokenizer.pad_token_id,
            **small,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ModelCard(kind="reward_model", base="opt", template_digest=Template().digest).save(folder)
    learner = learner_of(llama_folder, RewardModel.load(folder, Template()), critic="own")
    assert learner.networks.value_head.weight.shape == (1, 16)
    assert learner.estimate(episodes_of(learner.networks.policy), some_rewards(8), 0.1).values.isfinite().all()


def test_no_layer_is_left_out_and_no_noise_is_added_at_random():
    model = M2M100Model(
        M2M100Config(vocab_size=8, d_model=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8, decoder_ffn_dim=8,
                     encoder_attention_heads=2, decoder_attention_heads=2, encoder_layerdrop=0.3, decoder_layerdrop=0.3)
    )  # fmt: skip
    switch_dropout_off(model)
    assert (model.encoder.layerdrop, model.decoder.layerdrop) == (0.0, 0.0)
    router = SwitchTransformersTop1Router(SwitchTransformersConfig(router_jitter_noise=0.1))
    switch_dropout_off(router)
    assert router.jitter_noise == 0.0


def test_a_phimoe_routes_while_it_is_trained_as_it_samples():
    torch.manual_seed(0)
    model = PhimoeForCausalLM(
        PhimoeConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                     num_key_value_heads=2, num_local_experts=8, input_jitter_noise=0.1, router_jitter_noise=0.4)
    ).eval()  # fmt: skip
    ids = torch.arange(32)[None]
    with torch.no_grad():
        expected = model(ids).logits
        switch_dropout_off(model)
        assert torch.equal(model(ids).logits, expected)
        train_without_draws(model)
        assert model.training
        assert torch.equal(model(ids).logits, expected)


def test_a_checkpoint_takes_memory_of_the_first_process_alone(llama_folder, monkeypatch):
    learner = learner_of(llama_folder)
    learner.improve(estimated(learner), 1)
    assert all(value.numel() for value in learner.state()[0].values())
    monkeypatch.setattr(processes, "rank", lambda: 1)
    assert not any(value.numel() for value in learner.state()[0].values())


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"minibatch_size \(512\) must be at most batch_size \(8\)"):
        config_of(minibatch_size=512)
    with pytest.raises(ConfigError, match="exclude each other"):
        config_of(missing_eos_penalty=1.0)
    with pytest.raises(ConfigError, match="needs kl_coeff 0"):
        config_of(reference="none")
    with pytest.raises(ConfigError, match="kl_target needs a kl_coeff above 0"):
        config_of(kl_target=5.0, kl_coeff=0.0)
    with pytest.raises(ConfigError, match=r"kl_horizon \(7\) must not be less than batch_size \(8\)"):
        config_of(kl_target=5.0, kl_horizon=7)
    config_of(kl_target=5.0, kl_horizon=8)
    with pytest.raises(ConfigError, match="go together"):
        config_of(advantage="group")
    with pytest.raises(ConfigError, match="has no critic"):
        config_of(advantage="group", group_size=4, critic="own")


def test_what_nobody_reads_of_the_last_layer_is_not_computed_and_changes_no_gradient(llama_folder, monkeypatch):
    found, rows = [], []
    find = sparing._last_layer
    for spares in (False, True):
        monkeypatch.setattr(sparing, "_last_layer", find if spares else lambda model: None)
        learner = learner_of(llama_folder, critic="own")
        rollout = estimated(learner)
        last = learner.networks.base.model.layers[-1].mlp.up_proj
        last.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[:-1].numel()))
        learner.gradient(rollout, range(8))
        found.append(gradients(learner))
    assert torch.allclose(*found, atol=1e-7)
    assert rows[-1] < rows[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "deepspeed needs sharding 'deepspeed', found 'none'"),
        ({"sharding": "deepspeed", "tuning": "qlora"}, "sharding 'deepspeed' cannot hold weights of 4 bits"),
        ({"gradient_clipping": 1.0}, "gradient_clipping: leave it out, and set max_gradient_norm instead"),
        ({"bf16": {"enabled": True}}, "bf16: leave it out, and set precision instead"),
        ({"prescale_gradients": True}, "prescale_gradients: not known here"),
        ({}, "zero_optimization.stage: found None, expected 1, 2 or 3"),
        ({"zero_optimization": {"stage": 0}}, "zero_optimization.stage: found 0"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, "found 'cpu' at stage 2"),
        ({"zero_optimization": {"stage": 3}}, "needs engine 'transformers', found 'auto'"),
    ],
)
def test_a_deepspeed_configuration_that_does_not_fit_is_refused(options, said):
    if "tuning" not in options and "deepspeed" not in options:
        options = {"sharding": "deepspeed", "deepspeed": options}
    with pytest.raises(ConfigError, match=said):
        config_of(**options)


def test_what_a_deepspeed_configuration_leaves_to_its_trainer_is_no_contradiction():
    given = {
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": False},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 1, "reduce_bucket_size": "auto", "overlap_comm": True},
    }
    config = config_of(sharding="deepspeed", deepspeed=given)
    assert config.deepspeed == {"zero_optimization": {"stage": 1, "overlap_comm": True}}


# What is said where it is missing cannot be seen where it is there.
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="deepspeed is installed")
def test_deepspeed_that_is_not_installed_is_asked_for_in_vain():
    from rlhf.ppo.zero import require_deepspeed

    with pytest.raises(ConfigError, match="not installed"):
        require_deepspeed()


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_activations_computed_again_change_no_gradient(policy_folder, tuning):
    found = []
    for again in (False, True):
        learner = learner_of(policy_folder, activation_checkpointing=again, critic="own", tuning=tuning)
        shake(learner)  # the critic's adapter is not the policy's
        rollout = estimated(learner)
        learner.gradient(rollout, range(8))
        found.append(gradients(learner))
    assert torch.allclose(*found, atol=1e-7)


def shake(learner) -> None:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for _, parameter in learner.networks.named_parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.slow
def test_compiled_trunks_change_no_gradient(policy_folder):
    found = []
    for compiled in (False, True):
        learner = learner_of(policy_folder, compile=compiled, critic="own")
        rollout = estimated(learner)
        learner.gradient(rollout, range(8))
        found.append(gradients(learner))
    assert torch.allclose(*found, atol=1e-5)


def test_bfloat16_keeps_weights_in_float32_and_is_near(policy_folder):
    found = []
    for precision in ("float32", "bfloat16"):
        learner = learner_of(policy_folder, precision=precision)
        rollout = estimated(learner)
        measured = learner.gradient(rollout, range(8))
        assert measured["update_kl"] == 0, "the ratio of the whole batch is 1 in any precision"
        assert {p.dtype for _, p in learner.networks.named_parameters()} == {torch.float32}
        found.append(gradients(learner))
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.98
    assert not torch.equal(*found)
