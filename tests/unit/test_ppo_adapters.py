"""Policy, reference, critic and reward model as adapters on one copy of the base weights."""

import pytest
import torch

from rlhf.data.template import Template
from rlhf.models.card import ModelCard
from rlhf.models.policy import Policy
from rlhf.models.scoring import RewardModel
from rlhf.ppo.learner import Learner
from rlhf.ppo.networks import Networks
from rlhf.reward_trainer.config import RewardTrainerConfig
from tests.models import write_bart, write_gpt2
from tests.ppo import LetterReward, config_of, episodes_of, policy_of, prompts_of, run_of, some_rewards

LORA = {"tuning": "lora", "lora": "rank-4"}


def adapted_policy(base, folder, tuning="lora"):
    """An SFT policy's adapter, with weights of its own."""
    config = config_of(tuning=tuning)
    policy, trainee = Policy.to_train(base, Template(), config)
    shake(policy.model, 1)
    policy.save(folder, card_of("policy", trainee.base, tuning))
    return folder


def adapted_reward_model(base, folder, tuning="lora"):
    torch.manual_seed(0)
    model, trainee = RewardModel.to_train(base, Template(), RewardTrainerConfig(tuning=tuning))
    shake(model.model, 2)
    model.save(folder, card_of("reward_model", trainee.base, tuning))
    return folder


def shake(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def card_of(kind, base, tuning):
    return ModelCard(kind=kind, base=base, template_digest=Template().digest, base_in_4_bits=tuning == "qlora")


def bytes_of(*modules):
    """Of the distinct weights that are held."""
    held = {p.data_ptr(): p.numel() * p.element_size() for module in modules for p in module.parameters()}
    return sum(held.values())


@pytest.mark.parametrize("tuning", ["lora", "qlora"])
def test_all_four_stand_on_one_copy_of_the_base(policy_folder, tmp_path, tuning):
    start = adapted_policy(policy_folder, tmp_path / "policy", tuning)
    reward_folder = adapted_reward_model(policy_folder, tmp_path / "reward", tuning)
    config = config_of(tuning=tuning, critic="own")
    policy, _ = Policy.to_train(start, Template(), config)
    alone = bytes_of(policy.model)
    reward_model = RewardModel.beside(policy.model, reward_folder, Template())
    networks = Networks(policy, config, reward_model, continues_adapter=True)
    together = bytes_of(policy.model, reward_model.model, networks.value_head)
    adapters = sum(
        p.numel() * p.element_size()
        for name, p in policy.model.named_parameters()
        if any(f".{adapter}." in name for adapter in ("reference", "reward", "critic"))
    )
    rest = sum(
        p.numel() * p.element_size()
        for name, p in [*reward_model.model.named_parameters(), *networks.value_head.named_parameters()]
        if "score" in name or "classification_head" in name or name in ("weight", "bias")
    )
    assert together == alone + adapters + rest
    assert networks._reference is None
    assert networks.critic is None


@pytest.mark.parametrize("tuning", ["lora", "qlora"])
def test_a_reward_model_beside_the_policy_scores_as_it_does_alone(policy_folder, tmp_path, tuning):
    reward_folder = adapted_reward_model(policy_folder, tmp_path / "reward", tuning)
    policy, _ = Policy.to_train(policy_folder, Template(), config_of(tuning=tuning))
    shake(policy.model, 3)
    texts = [prompt.text for prompt in prompts_of(policy)]
    answers = [" my brother", " my boss broke my bike", ""] * 4
    beside = RewardModel.beside(policy.model, reward_folder, Template()).score(texts, answers)
    assert beside == pytest.approx(RewardModel.load(reward_folder, Template()).score(texts, answers), abs=1e-5)


@pytest.mark.parametrize(("write", "tokenizer"), [(write_gpt2, "llama"), (write_bart, "t5")])
def test_it_does_so_whatever_the_trunk_is_called(write, tokenizer, request, tmp_path):
    write(tmp_path / "base", request.getfixturevalue(f"{tokenizer}_folder"))
    folder = adapted_reward_model(str(tmp_path / "base"), tmp_path / "reward")
    policy, _ = Policy.to_train(str(tmp_path / "base"), Template(), config_of(**LORA))
    texts, answers = ["Who sold it?", "And why?"] * 2, [" my brother", " my boss broke my bike", "", " so"]
    beside = RewardModel.beside(policy.model, folder, Template()).score(texts, answers)
    assert beside == pytest.approx(RewardModel.load(folder, Template()).score(texts, answers), abs=1e-5)
    assert max(beside) - min(beside) > 1e-3


def test_a_reward_model_on_another_base_is_not_put_there(llama_folder, bert_folder, tmp_path):
    policy, _ = Policy.to_train(llama_folder, Template(), config_of(**LORA))
    for base in (bert_folder, llama_folder):
        folder = adapted_reward_model(base, tmp_path / base.name)
        assert (RewardModel.beside(policy.model, folder, Template()) is None) == (base is bert_folder)
    assert RewardModel.beside(policy.model, llama_folder, Template()) is None


@pytest.mark.parametrize("continues", [False, True])
def test_the_reference_is_what_training_started_from(policy_folder, tmp_path, continues):
    start = adapted_policy(policy_folder, tmp_path / "policy") if continues else policy_folder
    config = config_of(**LORA)
    policy, _ = Policy.to_train(start, Template(), config)
    learner = Learner(config, Networks(policy, config, continues_adapter=continues), 10)
    episodes = episodes_of(policy)
    before = learner.estimate(episodes, some_rewards(8), 0.1)
    assert before.kl.abs().max() < 1e-5
    shake_trained(policy.model)
    after = learner.estimate(episodes, some_rewards(8), 0.1)
    assert torch.allclose(after.log_probs - after.log_ratio, before.log_probs * after.mask, atol=1e-5)
    assert after.kl.abs().max() > 1e-2


def test_the_reference_has_an_output_layer_of_its_own_where_that_is_adapted_too(llama_folder):
    config = config_of(tuning="lora", lora={"rank": 4, "target_modules": ["q_proj", "lm_head"]})
    policy, _ = Policy.to_train(llama_folder, Template(), config)
    learner = Learner(config, Networks(policy, config), 10)
    episodes = episodes_of(policy)
    before = learner.estimate(episodes, some_rewards(8), 0.1)
    shake_trained(policy.model)
    after = learner.estimate(episodes, some_rewards(8), 0.1)
    assert torch.allclose(after.log_probs - after.log_ratio, before.log_probs * after.mask, atol=1e-5)
    assert after.kl.abs().max() > 1e-2


def shake_trained(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".default." in name and ".lora_" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("critic", ["shared", "own"])
def test_training_moves_the_policys_adapter_and_the_critic_and_nothing_else(policy_folder, tmp_path, critic):
    config = config_of(**LORA, critic=critic, learning_rate=1e-2)
    policy, _ = Policy.to_train(policy_folder, Template(), config)
    reward_model = RewardModel.beside(
        policy.model, adapted_reward_model(policy_folder, tmp_path / "reward"), Template()
    )
    networks = Networks(policy, config, reward_model)
    before = {name: p.clone() for name, p in policy.model.named_parameters()}
    run_of(networks, config, LetterReward(), prompts_of(policy))
    moved = {name for name, p in policy.model.named_parameters() if not torch.equal(p, before[name])}
    wanted = {".default.", ".critic."} if critic == "own" else {".default."}
    assert moved == {name for name in before if any(part in name for part in wanted)}


def test_only_the_trained_adapter_is_saved(llama_folder, tmp_path):
    config = config_of(**LORA, critic="own")
    start = adapted_policy(llama_folder, tmp_path / "start")
    policy, trainee = Policy.to_train(start, Template(), config)
    Networks(policy, config, continues_adapter=True)
    policy.save(tmp_path / "saved", card_of("policy", trainee.base, "lora"))
    assert not [path for path in (tmp_path / "saved").iterdir() if path.is_dir()]
    again = Policy.load(tmp_path / "saved", Template())
    prompts = [prompt.ids for prompt in prompts_of(policy)]
    assert again.generate(prompts, 8, 0.0) == policy.generate(prompts, 8, 0.0)


def test_the_policy_that_a_run_ends_with_is_the_same_whether_or_not_the_reward_model_stands_beside_it(
    llama_folder, tmp_path
):
    folder = adapted_reward_model(llama_folder, tmp_path / "reward")
    config = config_of(**LORA)
    ends = []
    for beside in (True, False):
        policy = policy_of(llama_folder, config)
        reward_model = RewardModel.beside(policy.model, folder, Template()) if beside else RewardModel.load(folder)
        run_of(Networks(policy, config, reward_model), config, reward_model, prompts_of(policy))
        ends.append(torch.cat([p.flatten() for n, p in policy.model.named_parameters() if ".default." in n]))
    assert torch.allclose(*ends, atol=1e-5)
