"""The networks of PPO: policy, reference and critic, read at the positions of responses only."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from rlhf.errors import ModelError
from rlhf.models import adapting
from rlhf.models.loading import Kind, computing_in, score_heads, working_dtype
from rlhf.models.policy import Policy, pad_right
from rlhf.models.scoring import RewardModel
from rlhf.models.sparing import LastLayer
from rlhf.ppo import maths
from rlhf.ppo.config import PPOTrainerConfig
from rlhf.training import processes


@dataclass(frozen=True)
class Episode:
    """A prompt and what the policy answered, as token ids; the answer ends in EOS unless it was cut off."""

    prompt: Sequence[int]
    response: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class Batch:
    """Episodes of one forward pass. A causal model reads prompt and response as one row.

    Rows are padded on the right: a model that only looks back never sees that padding, and needs no mask.
    """

    prompts: torch.Tensor  # (episodes, longest); with the responses, for a causal model
    prompt_mask: torch.Tensor
    responses: torch.Tensor | None  # (episodes, longest response), for an encoder-decoder
    at: torch.Tensor  # (positions,) where in the flattened hidden states each value, and each prediction, is read
    spoken: torch.Tensor  # (positions,) whether a response token is predicted there
    tokens: torch.Tensor  # (response tokens,) of all episodes, one after the other

    @classmethod
    def of(cls, policy: Policy, episodes: Sequence[Episode], values: Sequence[int]) -> "Batch":
        """Pad episodes.

        Args:
            values: Positions of each episode that have a value: as many as response tokens, or one more.
        """
        device = policy.model.device
        if policy.kind is Kind.CAUSAL:
            rows, responses = [[*e.prompt, *e.response] for e in episodes], None
            first = [len(e.prompt) - 1 for e in episodes]
        else:
            rows = [e.prompt for e in episodes]
            start = policy.model.generation_config.decoder_start_token_id
            read = [[start, *e.response][:count] for e, count in zip(episodes, values, strict=True)]
            responses = pad_right(read, policy.pad, device)[0]
            first = [0] * len(episodes)
        prompts, prompt_mask = pad_right(rows, policy.pad, device)
        width = (prompts if responses is None else responses).shape[1]
        at = [row * width + first[row] + i for row, count in enumerate(values) for i in range(count)]
        spoken = [i < len(e.response) for e, count in zip(episodes, values, strict=True) for i in range(count)]
        return cls(
            prompts,
            prompt_mask,
            responses,
            torch.tensor(at, device=device),
            torch.tensor(spoken, device=device),
            torch.tensor([token for e in episodes for token in e.response], device=device),
        )


class Trunk:
    """A model up to its last hidden states.

    Args:
        kind: Whether its encoder and decoder are called, or its base model.
        sparing: Skip what the last layer computes for positions that nobody reads; not where activations are computed
            again in the backward pass, which would not know these positions, nor where the model is compiled.
    """

    def __init__(self, model: PreTrainedModel, kind: Kind, sparing: bool):
        self.model, self.kind = model, kind
        self.parts = [model.base_model] if kind is Kind.CAUSAL else [model.get_encoder(), model.get_decoder()]
        self._last_layer = LastLayer(model) if sparing else None

    def compile(self) -> None:
        """Compile what `hidden` calls. What `generate` calls stays as it is: its shapes change at every token."""
        self.parts = [torch.compile(part, dynamic=True) for part in self.parts]

    def hidden(self, batch: Batch) -> torch.Tensor:
        """States where values and predictions are read: (positions, hidden)."""
        if self.kind is Kind.CAUSAL:
            last_layer = self._last_layer
            with last_layer.read_at(batch.at) if last_layer else contextlib.nullcontext():
                states = self.parts[0](input_ids=batch.prompts, use_cache=False).last_hidden_state
        else:
            encoder, decoder = self.parts
            encoded = encoder(input_ids=batch.prompts, attention_mask=batch.prompt_mask)
            states = decoder(
                input_ids=batch.responses,
                encoder_hidden_states=encoded.last_hidden_state,
                encoder_attention_mask=batch.prompt_mask,
                use_cache=False,
            ).last_hidden_state
        return states.flatten(0, 1)[batch.at]


class Networks:
    """What PPO computes with: the policy, what its KL is measured from, and the critic.

    Args:
        policy: Is tuned in place. Its adapter, where it has one, is what is trained.
        config: critic, reference, compile.
        reward_model: What a critic of its own starts from, where it reads the policy's tokens.
        continues_adapter: Whether training starts from the adapter's weights, not from the base under it.

    Raises:
        ModelError: The policy's logits are not its output layer's of its last hidden state.
    """

    def __init__(
        self,
        policy: Policy,
        config: PPOTrainerConfig,
        reward_model: RewardModel | None = None,
        continues_adapter: bool = False,
    ):
        self.policy = policy
        policy.model.eval()  # dropout off, in training too: log-probabilities must mean the same in both phases
        self.base = _whole(policy.model)
        self.device = policy.model.device
        width = self.base.get_output_embeddings().weight.shape[1]
        self.critic, self._critic_adapter, critic_rewards = None, False, False
        if config.critic == "own" and adapting.is_adapted(policy.model):
            from rlhf.models import tuning

            critic_rewards = tuning.REWARD in policy.model.peft_config
            start = tuning.REWARD if critic_rewards else tuning.TRAINED
            tuning.copy_adapter(policy.model, tuning.CRITIC, start, frozen=False)
            self._critic_adapter = True
        elif config.critic == "own":
            critic_rewards = _reads_alike(policy, reward_model)
            start = reward_model if critic_rewards else policy
            self.critic = copy.deepcopy(start.model).eval().requires_grad_(True)
            width = _score_head(reward_model).weight.shape[1] if critic_rewards else width
        self.value_head = nn.Linear(width, 1, device=self.device)
        # It starts at 0, the mean of a standardised score, where it does not give the reward model's.
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        if critic_rewards and policy.kind is Kind.CAUSAL and config.reward_scaling == "none":
            _copy_score_head(reward_model, self.value_head, config.reward_model_weight)
        self._reference = None
        self._has_reference = config.reference == "auto"
        if self._has_reference and not adapting.is_adapted(policy.model):
            self._reference = copy.deepcopy(self.base).requires_grad_(False)
        elif self._has_reference and continues_adapter:
            from rlhf.models import tuning

            tuning.copy_adapter(policy.model, tuning.REFERENCE)
        self._continues_adapter = continues_adapter
        models = {"policy": self.base, "critic": self.critic, "reference": self._reference}
        recomputed = config.activation_checkpointing
        if recomputed is None:
            recomputed = self.device.type == "cuda" and self.base.supports_gradient_checkpointing
        sparing = not recomputed and not config.compile
        self._trunks = {name: Trunk(model, policy.kind, sparing) for name, model in models.items() if model is not None}
        self.dtype = working_dtype(config.precision, self.device)
        for model in filter(None, (policy.model, self.critic)):
            adapting.switch_dropout_off(model)
        self._require_plain_output()
        self._checkpointed = []
        if recomputed:
            self._checkpointed = [model for model in (self.base, self.critic) if model is not None]
            for model in self._checkpointed:
                model.activation_checkpointing_enable({"use_reentrant": False})
        several = processes.count() > 1
        self.uses_deepspeed = several and config.sharding == "deepspeed"
        self.is_sharded = several and config.spreads_weights
        if self.is_sharded and not self.uses_deepspeed:
            from rlhf.ppo.sharding import shard

            for trunk in self._trunks.values():
                shard(trunk.model, trunk.parts)
        if config.compile:
            for trunk in self._trunks.values():
                trunk.compile()

    @property
    def has_reference(self) -> bool:
        return self._has_reference

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Activations are computed again in the backward pass, where that is wanted. There is no dropout to go on."""
        for model in self._checkpointed:
            adapting.train_without_draws(model)
        try:
            yield
        finally:
            for model in self._checkpointed:
                model.eval()

    def precision(self) -> torch.autocast:
        return computing_in(self.dtype, self.device)

    def unshard(self) -> None:
        """Let every process hold all of the policy again."""
        if self.is_sharded:
            if self.uses_deepspeed:
                from rlhf.ppo.zero import unshard
            else:
                from rlhf.ppo.sharding import unshard
            unshard(self.base)

    def as_module(self) -> nn.Module:
        """All of them."""
        return nn.ModuleList(filter(None, (self.policy.model, self.critic, self.value_head, self._reference)))

    def policy_parameters(self) -> list[nn.Parameter]:
        return [parameter for name, parameter in self.named_parameters() if not _is_of_critic(name)]

    def critic_parameters(self) -> list[nn.Parameter]:
        return [parameter for name, parameter in self.named_parameters() if _is_of_critic(name)]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained, by names that are the same in every process of every run."""
        for name, parameter in self.policy.model.named_parameters():
            if parameter.requires_grad:
                yield f"policy.{name}", parameter
        for prefix, module in (("critic", self.critic), ("value_head", self.value_head)):
            if module is not None:
                for name, parameter in module.named_parameters():
                    yield f"{prefix}.{name}", parameter

    def hidden(self, batch: Batch) -> torch.Tensor:
        """The policy's last hidden states where values and predictions are read: (positions, hidden)."""
        return self._trunks["policy"].hidden(batch)

    def logits(self, hidden: torch.Tensor, temperature: float, model: PreTrainedModel | None = None) -> torch.Tensor:
        """Logits of what is sampled: (positions, hidden) to (positions, vocabulary), in float32.

        Args:
            model: Whose output layer; None for the policy's.
        """
        return self.policy.without_forbidden(_output(model or self.base, hidden, temperature).float())

    def log_probs(
        self,
        hidden: torch.Tensor,
        batch: Batch,
        temperature: float,
        at_once: int,
        model: PreTrainedModel | None = None,
    ) -> torch.Tensor:
        """Log-probability of each response token as it would be sampled, without gradients: (response tokens,)."""
        parts = self.pieces(at_once, hidden[batch.spoken], batch.tokens)
        return torch.cat(
            [maths.chosen_log_probs(self.logits(part, temperature, model), tokens) for part, tokens in parts]
        )

    def reference_log_probs(self, batch: Batch, temperature: float, at_once: int) -> torch.Tensor:
        """The same by the reference: by its hidden states, and its output layer."""
        if self._reference is not None:
            hidden = self._trunks["reference"].hidden(batch)
            return self.log_probs(hidden, batch, temperature, at_once, self._reference)
        from rlhf.models import tuning

        with tuning.using_adapter(self.policy.model, tuning.REFERENCE if self._continues_adapter else None):
            return self.log_probs(self.hidden(batch), batch, temperature, at_once)

    def pieces(self, at_once: int, *rows: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        """Tensors of as many rows as each other, cut into those that go through the output layer at once.

        Where that layer is spread as well (ZeRO 3), every process has to call it as often: one that has fewer pieces
        takes empty ones.
        """
        parts = list(zip(*(each.split(at_once) for each in rows), strict=True))
        if self.is_sharded and self.uses_deepspeed:
            lacking = max(processes.gather(len(parts))) - len(parts)
            parts += [tuple(each[:0] for each in rows)] * lacking
        return parts

    @contextlib.contextmanager
    def valuing(self) -> Iterator[None]:
        """`values` is called within, and their backward pass: it may compute activations again, by the same adapter."""
        if not self._critic_adapter:
            yield
            return
        from rlhf.models import tuning

        with tuning.using_adapter(self.policy.model, tuning.CRITIC):
            yield

    def values(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What the rest of each episode is expected to earn: (positions,).

        Args:
            hidden: The policy's, which a critic of its own does not need.
        """
        if self.critic is not None:
            hidden = self._trunks["critic"].hidden(batch)
        elif self._critic_adapter:
            hidden = self.hidden(batch)
        with torch.autocast(self.device.type, enabled=False):  # in bfloat16 a value has three digits
            return self.value_head(hidden.float())[:, 0]

    @torch.no_grad()
    def _require_plain_output(self) -> None:
        """Logits are computed for response positions alone, by the output layer; see that this is what the model does.

        A model that also caps or scales them would be tuned on other probabilities than it samples from.
        """
        start = self.policy.eos
        batch = Batch.of(self.policy, [Episode([start, start], [start])], [1])
        inputs = {"input_ids": batch.prompts}
        if batch.responses is not None:
            inputs["decoder_input_ids"] = batch.responses
        expected = self.base(**inputs).logits.flatten(0, 1)[batch.at].float()
        found = _output(self.base, self.hidden(batch)).float()
        if not torch.allclose(found, expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item()):
            raise ModelError(
                f"policy: {type(self.base).__name__} does more to its logits than its output layer (caps or scales "
                "them), which the PPO trainer cannot follow; take a model that does not"
            )


def _is_of_critic(name: str) -> bool:
    return not name.startswith("policy.") or ".critic." in name


def _whole(model: PreTrainedModel) -> PreTrainedModel:
    """The language model, with adapters in its layers, out of what PEFT puts around it."""
    return model.get_base_model() if adapting.is_adapted(model) else model


def _output(model: PreTrainedModel, hidden: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Logits over the temperature."""
    if getattr(model.config, "scale_decoder_outputs", False):  # T5 whose output layer is its embedding
        hidden = hidden * model.config.d_model**-0.5
    layer = model.get_output_embeddings()
    if layer.bias is not None:
        return layer(hidden) / temperature
    return layer(hidden / temperature)  # the same, of many fewer numbers


def _reads_alike(policy: Policy, reward_model: RewardModel | None) -> bool:
    """Whether the reward model reads the policy's tokens, so that a critic can start from it."""
    return (
        reward_model is not None
        and policy.kind is Kind.CAUSAL
        and reward_model.kind is Kind.CAUSAL
        and policy.tokenizer.get_vocab() == reward_model.tokenizer.get_vocab()
    )


def _score_head(reward_model: RewardModel) -> nn.Linear:
    return reward_model.model.get_submodule(score_heads(reward_model.model)[-1])


@torch.no_grad()
def _copy_score_head(reward_model: RewardModel, value_head: nn.Linear, weight: float) -> None:
    """Let a critic start with the value that the reward model's score will have (Huang et al. 2024, detail 15)."""
    head = _score_head(reward_model)
    value_head.weight.copy_(weight * head.weight)
    value_head.bias.fill_(weight * reward_model.shift)
    if head.bias is not None:
        value_head.bias.add_(weight * head.bias)
