import pytest
import torch

from rlhf.errors import ModelError
from rlhf.models.card import ModelCard
from rlhf.models.loading import load_tokenizer
from rlhf.models.policy import Policy, pad_left
from rlhf.ppo_trainer.networks import Episodes, log_probs

PROMPTS = ["My brother sold my guitar.\nTL;DR:", "So this is about my boss. Should I sue them?\nTL;DR:", "a\nTL;DR:"]


@pytest.fixture
def policy(policy_folder) -> Policy:
    return Policy.load(policy_folder)


def responses_of(policy: Policy, temperature: float = 1.0) -> tuple[list[list[int]], list[list[int]]]:
    torch.manual_seed(0)
    prompts = [policy.encode_prompt(text) for text in PROMPTS]
    return prompts, policy.generate(prompts, 12, temperature, batch_size=8)


@torch.no_grad()
def greedy_by_hand(policy: Policy, prompt: list[int], tokens: int) -> list[int]:
    """The likeliest allowed token after each prefix, found with a full forward pass a token."""
    said: list[int] = []
    while len(said) < tokens and (not said or said[-1] != policy.eos):
        ids = torch.tensor([prompt])
        if policy.kind == "seq2seq":
            start = policy.model.generation_config.decoder_start_token_id
            logits = policy.model(input_ids=ids, decoder_input_ids=torch.tensor([[start, *said]])).logits
        else:
            logits = policy.model(input_ids=torch.tensor([prompt + said])).logits
        said.append(policy.log_softmax(logits[0, -1], 1.0).argmax().item())
    return said


def test_greedy_generation_takes_the_likeliest_token_each_time_whatever_stands_beside_it(policy):
    prompts = [policy.encode_prompt(text) for text in PROMPTS]
    together = policy.generate(prompts, 8, temperature=0.0, batch_size=3)
    assert together == [greedy_by_hand(policy, prompt, 8) for prompt in prompts]
    assert together == policy.generate(prompts, 8, temperature=0.0, batch_size=1)
    assert together[::-1] == policy.generate(prompts[::-1], 8, temperature=0.0, batch_size=2)


def test_special_tokens_but_eos_are_never_sampled_and_have_no_probability(policy):
    prompts = [policy.encode_prompt(PROMPTS[0])] * 64
    torch.manual_seed(1)
    sampled = {token for ids in policy.generate(prompts, 30, temperature=5.0, batch_size=64) for token in ids}
    special = set(policy.tokenizer.all_special_ids) - {policy.eos}
    assert special, "the tokenizer has special tokens to keep out"
    assert not sampled & special
    probabilities = policy.log_softmax(torch.zeros(len(policy.tokenizer)), 1.0).exp()
    assert probabilities[sorted(special)].sum() == 0
    assert probabilities.sum().item() == pytest.approx(1)


def test_a_completion_ends_in_eos_or_is_as_long_as_allowed(policy):
    _, responses = responses_of(policy, temperature=3.0)
    for ids in responses:
        assert policy.eos not in ids[:-1]
        assert ids[-1] == policy.eos or len(ids) == 12


def test_sampling_repeats_with_its_seed_and_only_then(policy):
    (_, first), (_, again) = responses_of(policy), responses_of(policy)
    torch.manual_seed(7)
    other = policy.generate([policy.encode_prompt(text) for text in PROMPTS], 12, 1.0, batch_size=8)
    assert first == again
    assert first != other


def test_log_probs_are_those_of_a_forward_pass_without_padding(policy):
    prompts, responses = responses_of(policy)
    with torch.no_grad():
        batch = log_probs(policy, Episodes.of(policy, prompts, responses), temperature=0.7)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            if policy.kind == "seq2seq":
                start = policy.model.generation_config.decoder_start_token_id
                shifted = torch.tensor([[start, *response[:-1]]])
                logits = policy.model(input_ids=torch.tensor([prompt]), decoder_input_ids=shifted).logits[0]
            else:
                logits = policy.model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            expected = policy.log_softmax(logits, 0.7)[range(len(response)), response]
            assert torch.allclose(batch[row, : len(response)], expected, atol=1e-5)
            assert (batch[row, len(response) :] == 0).all()


def test_batch_order_and_wider_padding_do_not_change_log_probs(policy):
    prompts, responses = responses_of(policy)
    with torch.no_grad():
        forward = log_probs(policy, Episodes.of(policy, prompts, responses), 1.0)
        backward = log_probs(policy, Episodes.of(policy, prompts[::-1], responses[::-1]), 1.0)
        wider = Episodes.of(policy, [*prompts, prompts[0] * 3], [*responses, responses[0]])
        padded = log_probs(policy, wider, 1.0)[:3]
    assert torch.allclose(forward, backward.flip(0), atol=1e-5)
    assert torch.allclose(forward, padded, atol=1e-5)


def test_a_model_saved_and_loaded_again_gives_the_same_greedy_text(policy, tmp_path):
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.01 * torch.ones_like(parameter))
    policy.save(tmp_path / "saved", ModelCard(kind="policy", base="tiny", template_digest="abc"))
    loaded = Policy.load(tmp_path / "saved")
    prompts = [policy.encode_prompt(text) for text in PROMPTS]
    assert loaded.generate(prompts, 10, 0.0, 4) == policy.generate(prompts, 10, 0.0, 4)
    assert loaded.card.template_digest == "abc"
    assert list((tmp_path / "saved").glob("*.safetensors"))


def test_a_folder_that_only_refers_to_its_base_loads_the_base(policy_folder, tmp_path):
    ModelCard(kind="base", base=str(policy_folder)).save(tmp_path)
    prompts = [[5, 6, 7]]
    assert Policy.load(tmp_path).generate(prompts, 5, 0.0, 1) == Policy.load(policy_folder).generate(prompts, 5, 0.0, 1)


def test_padding_is_never_the_end_of_sequence_token(llama_folder, tmp_path):
    tokenizer = load_tokenizer(str(llama_folder))
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.pad_token_id is not None
    assert loaded.pad_token_id != loaded.eos_token_id


def test_an_encoder_is_refused_as_a_policy(bert_folder):
    with pytest.raises(ModelError, match="encoder and cannot generate"):
        Policy.load(bert_folder)


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path):
    with pytest.raises(ModelError, match=str(tmp_path)) as error:
        Policy.load(tmp_path)
    assert "\n" not in str(error.value)


def test_pad_left_puts_real_tokens_at_the_end():
    ids, mask = pad_left([[5], [6, 7]], 0, torch.device("cpu"))
    assert ids.tolist() == [[0, 5], [6, 7]]
    assert mask.tolist() == [[0, 1], [1, 1]]
