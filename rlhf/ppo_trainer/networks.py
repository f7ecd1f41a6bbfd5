"""The networks of PPO: log-probabilities and values at response positions, for causal and encoder-decoder models."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from rlhf.models.loading import Kind
from rlhf.models.policy import Policy, pad_left, pad_right
from rlhf.models.scoring import RewardModel


@dataclass(frozen=True)
class Episodes:
    """Prompts padded on the left and responses padded on the right, so that responses start in one column."""

    prompts: torch.Tensor  # (episodes, prompt tokens)
    prompt_mask: torch.Tensor
    responses: torch.Tensor  # (episodes, response tokens); ends in EOS unless cut off
    mask: torch.Tensor  # (episodes, response tokens), 1 on real tokens

    @classmethod
    def of(cls, policy: Policy, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Self:
        device = policy.model.device
        return cls(*pad_left(prompts, policy.pad, device), *pad_right(responses, policy.pad, device))


def model_inputs(episodes: Episodes, kind: Kind, decoder_start: int | None) -> dict[str, torch.Tensor]:
    """Keyword arguments of a Hugging Face forward pass that predicts every response token."""
    if kind is Kind.SEQ2SEQ:
        start = torch.full_like(episodes.responses[:, :1], decoder_start)
        return {
            "input_ids": episodes.prompts,
            "attention_mask": episodes.prompt_mask,
            "decoder_input_ids": torch.cat((start, episodes.responses[:, :-1]), 1),
        }
    attention = torch.cat((episodes.prompt_mask, episodes.mask), 1)
    return {
        "input_ids": torch.cat((episodes.prompts, episodes.responses), 1),
        "attention_mask": attention,
        "position_ids": (attention.cumsum(1) - 1).clamp_min(0),
        "use_cache": False,
    }


def log_probs(policy: Policy, episodes: Episodes, temperature: float) -> torch.Tensor:
    """Log-probability of each response token as it would be sampled: (episodes, response tokens), 0 under the mask."""
    inputs = model_inputs(episodes, policy.kind, policy.model.generation_config.decoder_start_token_id)
    if policy.kind is Kind.SEQ2SEQ:
        logits = policy.model(**inputs).logits
    else:
        # Logits of the last prompt token and of all response tokens but the last: the positions that predict.
        logits = policy.model(**inputs, logits_to_keep=episodes.responses.shape[1] + 1).logits[:, :-1]
    chosen = policy.log_softmax(logits, temperature).gather(-1, episodes.responses[..., None])[..., 0]
    return torch.where(episodes.mask.bool(), chosen, 0.0)


class Critic(nn.Module):
    """A value for every response position: expected reward of the rest of the completion.

    It has a trunk of its own, started from the reward model's where that reads the policy's tokens (Huang et al.
    2024, detail 15), else from the policy's. The head starts at 0, the mean of a standardised score.
    """

    def __init__(self, policy: Policy, reward_model: RewardModel):
        super().__init__()
        alike = policy.kind is Kind.CAUSAL and reward_model.kind is Kind.CAUSAL
        shared = alike and policy.tokenizer.get_vocab() == reward_model.tokenizer.get_vocab()
        source = reward_model.model if shared else policy.model
        self.trunk = copy.deepcopy(source.base_model if policy.kind is Kind.CAUSAL else source)
        self.head = nn.Linear(self.trunk.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.kind = policy.kind
        self.decoder_start = policy.model.generation_config.decoder_start_token_id
        self.to(policy.model.device)

    def forward(self, episodes: Episodes) -> torch.Tensor:
        """Values before each response token is taken: (episodes, response tokens)."""
        inputs = model_inputs(episodes, self.kind, self.decoder_start)
        if self.kind is Kind.CAUSAL:
            hidden = self.trunk(**inputs).last_hidden_state[:, -episodes.responses.shape[1] - 1 : -1]
        else:
            mask = inputs["attention_mask"]
            encoded = self.trunk.get_encoder()(input_ids=inputs["input_ids"], attention_mask=mask)
            hidden = self.trunk.get_decoder()(
                input_ids=inputs["decoder_input_ids"],
                encoder_hidden_states=encoded.last_hidden_state,
                encoder_attention_mask=mask,
                use_cache=False,
            ).last_hidden_state
        return self.head(hidden)[..., 0].float()
