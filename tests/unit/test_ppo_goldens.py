"""Our PPO against what TRL computed on the same weights, prompts and completions: see tests/goldens/ppo_trl_*.py."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from rlhf.models.policy import Policy
from rlhf.ppo import maths
from rlhf.ppo.learner import Learner, Rollout
from rlhf.ppo.networks import Episode, Networks
from rlhf.ppo_trainer.config import PPOTrainerConfig

ESTIMATORS = ("k1", "k3")
EPOCHS = (1, 2)  # in the second, ratios are not 1 and both losses are clipped here and there


class Golden(dict):
    """Tensors by name, and what they were made with."""

    def __init__(self, name: str):
        with safe_open(Path(__file__).parents[1] / "goldens" / f"{name}.safetensors", "pt") as file:
            super().__init__({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
            metadata = {key: json.loads(value) for key, value in file.metadata().items()}
        self.settings, self.model = metadata["settings"], metadata["model"]

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(f"{prefix}/"): value for key, value in self.items() if key.startswith(f"{prefix}/")}


@pytest.fixture(scope="module")
def llama() -> Golden:
    return Golden("ppo_trl_1_12")


@pytest.fixture(scope="module")
def t5() -> Golden:
    return Golden("ppo_trl_0_11")


def assert_same(found: torch.Tensor, expected: torch.Tensor, what: str = "") -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=lambda found: f"{what}: {found}")


def assert_same_gradients(parameters: dict[str, torch.nn.Parameter], expected: dict[str, torch.Tensor]) -> None:
    """To 1e-5 of each parameter's largest, since some are small."""
    assert parameters.keys() == expected.keys()
    for name, parameter in parameters.items():
        largest = expected[name].abs().max()
        assert largest > 1e-4, f"{name}: too little to tell right from wrong"
        assert_same(parameter.grad / largest, expected[name] / largest, name)


def assert_same_losses(run: dict[str, torch.Tensor], epoch: int, mask, value_mask, settings) -> None:
    log_probs, values = run[f"{epoch}/log_probs"], run[f"{epoch}/values"]
    losses, clipped = maths.policy_loss(log_probs, run["log_probs"], run["advantages"], settings["cliprange"])
    assert_same(losses[mask].mean(), run[f"{epoch}/policy_loss"])
    assert_same(clipped[mask].mean(), run[f"{epoch}/policy_clip_fraction"])
    losses, clipped = maths.value_loss(values, run["values"], run["returns"], settings["cliprange_value"])
    assert_same(losses[value_mask].mean(), run[f"{epoch}/value_loss"])
    assert_same(clipped[value_mask].mean(), run[f"{epoch}/value_clip_fraction"])
    if epoch > 1:
        for name in ("policy", "value"):
            assert run[f"{epoch}/{name}_clip_fraction"] > 0.1, "the golden tells nothing about clipping"


# The mathematics, against TRL 1.12.0.


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_kl_is_that_of_trl(llama, estimator):
    run = llama.under(estimator)
    assert_same(maths.kl_penalty(run["log_probs"], run["reference_log_probs"], run["mask"], estimator), run["kl"])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_token_rewards_with_the_score_after_eos_are_those_of_trl(llama, estimator):
    run = llama.under(estimator)
    found = maths.token_rewards(run["scores"], run["kl"], run["value_mask"], llama.settings["kl_coef"])
    assert_same(found, run["rewards"])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_advantages_and_returns_are_those_of_trl(llama, estimator):
    run, settings = llama.under(estimator), llama.settings
    value_mask = run["value_mask"]
    advantages, returns = maths.gae(run["rewards"], run["values"], value_mask, settings["gamma"], settings["lam"])
    assert_same(returns, run["returns"])
    assert_same(maths.whiten(advantages, run["mask"]), run["advantages"])


@pytest.mark.parametrize("epoch", EPOCHS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_losses_are_those_of_trl(llama, estimator, epoch):
    run = llama.under(estimator)
    assert_same_losses(run, epoch, run["mask"], run["value_mask"], llama.settings)


# The mathematics, against TRL 0.11.4, for which a completion begins at its second token.


def from_the_second(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:, 1:]


def test_kl_is_that_of_trl_0_11(t5):
    found = maths.kl_penalty(t5["log_probs"], t5["reference_log_probs"], t5["mask"], "k1")
    assert_same(found, t5["kl"] * t5["mask"])


def test_token_rewards_with_the_score_at_eos_are_those_of_trl_0_11(t5):
    kl, mask, expected = map(from_the_second, (t5["kl"] * t5["mask"], t5["mask"], t5["rewards"]))
    assert_same(maths.token_rewards(t5["scores"], kl, mask, t5.settings["init_kl_coef"]), expected * mask)


def test_advantages_and_returns_are_those_of_trl_0_11(t5):
    names = ("rewards", "values", "mask", "returns", "advantages")
    rewards, values, mask, expected_returns, expected = map(from_the_second, map(t5.get, names))
    advantages, returns = maths.gae(rewards, values, mask, t5.settings["gamma"], t5.settings["lam"])
    assert_same(returns[mask], expected_returns[mask])
    assert_same(maths.whiten(advantages, mask), expected * mask)


@pytest.mark.parametrize("epoch", EPOCHS)
def test_losses_are_those_of_trl_0_11(t5, epoch):
    assert_same_losses(t5, epoch, t5["mask"], t5["mask"], t5.settings)


def test_the_adapted_kl_coefficient_is_that_of_trl_0_11(t5):
    for coeff, kl, target, horizon, episodes, expected in t5["kl_controller"].tolist():
        found = maths.adapted_kl_coeff(coeff, kl, target, int(horizon), int(episodes))
        assert found == pytest.approx(expected, rel=1e-9)


# Whole updates through the networks.


def make_policy(model: torch.nn.Module, golden: Golden) -> Policy:
    pad, eos = golden.model["pad_token_id"], golden.model["eos_token_id"]
    words = {f"w{i}": i for i in range(golden.model["vocab_size"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w2")), pad_token=f"w{pad}", eos_token=f"w{eos}"
    )
    policy = Policy(model, tokenizer, None)
    policy.forbidden = []  # TRL leaves padding its probability
    return policy


def make_config(critic: str, **options) -> PPOTrainerConfig:
    """Micro-batches of few episodes, and logits in pieces: neither may change what comes out."""
    return PPOTrainerConfig(critic=critic, microbatch_tokens=30, logits_at_once=5, **options)


def options_of(golden: Golden) -> dict[str, float]:
    names = {
        "gamma": "gamma",
        "gae_lambda": "lam",
        "clip_range": "cliprange",
        "value_clip_range": "cliprange_value",
        "value_coeff": "vf_coef",
    }
    return {ours: golden.settings[theirs] for ours, theirs in names.items()}


def read_episodes(golden: Golden) -> list[Episode]:
    pad = golden.model["pad_token_id"]
    queries, responses = (golden[name].tolist() for name in ("queries", "responses"))
    return [
        Episode([i for i in query if i != pad], [i for i in response if i != pad])
        for query, response in zip(queries, responses, strict=True)
    ]


@torch.no_grad()
def load(parameters: dict[str, torch.nn.Parameter], weights: dict[str, torch.Tensor]) -> None:
    assert parameters.keys() == weights.keys()
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


class LlamaRun:
    """A learner whose policy, reference and critic have the golden's weights, under TRL's names."""

    def __init__(self, golden: Golden, kl_estimator: str = "k1"):
        policy = make_policy(LlamaForCausalLM(LlamaConfig(**golden.model)), golden)
        load(dict(policy.model.named_parameters()), golden.under("weights/reference"))
        config = make_config(
            "own",
            score_position="after_eos",
            kl_estimator=kl_estimator,
            temperature=golden.settings["temperature"],
            **options_of(golden),
        )
        self.golden, self.networks = golden, Networks(policy, config)  # the reference is what the policy is now
        self.load("weights")
        self.learner = Learner(config, self.networks, golden["responses"].shape[1])

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        policy = {f"policy/{name}": p for name, p in self.networks.policy.model.named_parameters()}
        critic = {f"value/model.{name}": p for name, p in self.networks.critic.base_model.named_parameters()}
        return policy | critic | {"value/score.weight": self.networks.value_head.weight}

    def load(self, prefix: str) -> None:
        weights = self.golden.under(prefix)
        load(self.parameters(), {name: w for name, w in weights.items() if name.startswith(("policy/", "value/"))})

    def estimate(self, run: dict[str, torch.Tensor]) -> Rollout:
        return self.learner.estimate(read_episodes(self.golden), run["scores"], self.golden.settings["kl_coef"])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_what_is_known_of_episodes_is_what_trl_knows(llama, estimator):
    run = llama.under(estimator)
    rollout = LlamaRun(llama, estimator).estimate(run)
    assert torch.equal(rollout.mask.bool(), run["mask"])
    assert torch.equal(rollout.value_mask.bool(), run["value_mask"])
    assert_same(rollout.log_probs, run["log_probs"] * run["mask"], "log-probabilities")
    for name in ("values", "kl", "advantages", "returns"):
        assert_same(getattr(rollout, name), run[name], name)


@pytest.mark.parametrize("epoch", EPOCHS)
def test_the_gradient_of_every_parameter_is_that_of_trl(llama, epoch):
    run, ours = llama.under("k1"), LlamaRun(llama)
    rollout = ours.estimate(run)
    if epoch > 1:
        ours.load(f"weights_{epoch}")
    measured = ours.learner.gradient(rollout, range(len(rollout.episodes)))
    assert measured["policy_loss"] == pytest.approx(run[f"{epoch}/policy_loss"].item(), abs=1e-5)
    assert measured["value_loss"] == pytest.approx(run[f"{epoch}/value_loss"].item(), abs=1e-5)
    assert_same_gradients(ours.parameters(), llama.under(f"gradients/{epoch}"))


class T5Run:
    """A learner whose policy with its value head, and reference, have the golden's weights, under TRL's names."""

    def __init__(self, golden: Golden):
        policy = make_policy(T5ForConditionalGeneration(T5Config(**golden.model)), golden)
        self.trunk = {f"pretrained_model.{name}": p for name, p in policy.model.named_parameters()}
        config = make_config("shared", temperature=1.0, **options_of(golden))
        reference = golden.under("weights/reference")
        load(self.trunk, {name: w for name, w in reference.items() if not name.startswith("v_head")})
        self.golden, self.networks = golden, Networks(policy, config)  # the reference is what the policy is now
        load(self.parameters(), golden.under("weights/policy"))
        self.learner = Learner(config, self.networks, golden["responses"].shape[1])

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return self.trunk | {f"v_head.summary.{name}": p for name, p in self.networks.value_head.named_parameters()}


def test_log_probs_values_and_kl_of_a_t5_are_those_of_trl_0_11(t5):
    rollout = T5Run(t5).learner.estimate(read_episodes(t5), t5["scores"], t5.settings["init_kl_coef"])
    said = rollout.mask.bool()
    assert torch.equal(from_the_second(said), from_the_second(t5["mask"]))
    for name, expected in {"log_probs": "log_probs", "kl": "kl", "values": "1/values"}.items():
        assert_same(getattr(rollout, name)[said], t5[expected][said], name)


@pytest.mark.parametrize("epoch", EPOCHS)
def test_the_gradient_of_every_parameter_of_a_t5_is_that_of_trl_0_11(t5, epoch):
    """TRL leaves first tokens out; here they are in, with nothing to learn from, and means are over more tokens."""
    ours = T5Run(t5)
    if epoch > 1:
        load(ours.parameters(), t5.under(f"weights_{epoch}"))
    episodes = read_episodes(t5)
    said = t5["mask"].clone()
    said[:, 0] = True
    first_values = torch.where(t5["mask"], 0.0, t5[f"{epoch}/values"]) * said
    rollout = Rollout(
        episodes=episodes,
        mask=said.float(),
        value_mask=said.float(),
        log_probs=t5["log_probs"],
        kl=None,
        log_ratio=None,
        values=t5["values"] * t5["mask"] + first_values,
        advantages=t5["advantages"] * t5["mask"],
        returns=t5["returns"] * t5["mask"] + first_values,
    )
    measured = ours.learner.gradient(rollout, range(len(episodes)))
    share = said.sum() / t5["mask"].sum()
    for parameter in ours.parameters().values():
        parameter.grad *= share
    assert measured["policy_loss"] * share == pytest.approx(t5[f"{epoch}/policy_loss"].item(), abs=1e-5)
    assert measured["value_loss"] * share == pytest.approx(t5[f"{epoch}/value_loss"].item(), abs=1e-5)
    assert_same_gradients(ours.parameters(), t5.under(f"gradients/{epoch}"))
