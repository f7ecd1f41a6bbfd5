"""How much memory each stage needs on each accelerator, by the way that it holds its models.

Weights, adapters, gradients and optimiser state are counted: they are as many bytes as a run holds. Activations, casts,
logits and what a driver takes are estimated from what a layer computes. Nothing here needs torch.

What every trainer has in common: weights are held in float32 (bfloat16 is what passes through them compute in), AdamW
keeps two moments of each trained weight, and activations are computed again in the backward pass, so that of each layer
only its input is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from rlhf.bulk_inference.config import BulkInferenceConfig
from rlhf.grpo_trainer.config import GRPOTrainerConfig
from rlhf.ppo_trainer.config import PPOTrainerConfig
from rlhf.reward_trainer.config import RewardTrainerConfig
from rlhf.sft_trainer.config import SFTTrainerConfig
from rlhf.training.config import TrainerConfig

FLOAT, HALF = 4, 2
MOMENTS = 8  # bytes of AdamW's two for each trained number
# NF4 with double quantisation: 4 bits, 8 for every 64 numbers, and 32 for every 256 of these (Dettmers et al. 2023).
FOUR_BITS = (4 + 8 / 64 + 32 / (64 * 256)) / 8
# A driver's context, kernels' workspaces, and what PyTorch's allocator cannot use for being in pieces.
OVERHEAD = 1.5 * 2**30
EXCHANGE = 2**30  # NCCL's buffers, where there are several processes
SCORED_AT_ONCE = 32_768  # rlhf.models.scoring.TOKENS_AT_ONCE, on a GPU
CACHE_GROWTH = 64  # rlhf.models.generation.GROWTH
PROMPTS_AT_ONCE = 65_536  # tokens: rlhf.models.generation.PROMPT_TOKENS_AT_ONCE
LOGITS_AT_ONCE = 8192  # tokens, of TRL's fused output layer
VLLM_SHARE = 0.3  # rlhf.models.engines.VLLM_SHARE

ALWAYS = "always"


@dataclass(frozen=True)
class Size:
    """What memory depends on. Counts are of numbers, not of bytes; tied weights count once."""

    kind: str
    parameters: int
    layer_parameters: int
    """Of all layers: what is spread where weights are."""
    largest_layer: int
    linear: int
    """Weights of linear layers, the output layer's apart: what 4 bits hold, and what adapters stand on."""
    adapter_per_rank: int
    """Numbers of an adapter on all of these, for each of its rank."""
    layers: int
    """Encoder's and decoder's."""
    layer_width: int
    """Inputs and outputs of the linear layers of one layer, added up."""
    hidden: int
    intermediate: int
    heads: int
    cache_per_token: int
    """Keys and values of all layers that keep them; half of them are keys."""
    vocabulary: int


@dataclass(frozen=True)
class Part:
    """Something that takes memory.

    Args:
        size: Bytes on each accelerator.
        phase: When it is there: in one phase of the stage, or always.
        least: Bytes that it can be cut to where memory runs out; None where it cannot.
        counted: Whether it is exact, not estimated.
    """

    name: str
    size: float
    phase: str = ALWAYS
    least: float | None = None
    counted: bool = False


@dataclass(frozen=True)
class Need:
    """What one stage needs.

    Args:
        parts: On each accelerator.
        host: Bytes of RAM for each process: models are loaded there first.
        disk: Bytes of what is downloaded, saved and kept in checkpoints.
        share: Of an accelerator's memory, what there is for `parts`.
        in_vllm: Bytes of vLLM's weights, and of its cache for one completion, which have the rest.
    """

    parts: list[Part]
    host: float
    disk: float
    share: float = 1.0
    in_vllm: float = 0.0

    @property
    def phases(self) -> list[str]:
        return list(dict.fromkeys(part.phase for part in self.parts if part.phase != ALWAYS)) or [ALWAYS]

    def in_phase(self, phase: str, least: bool = True) -> float:
        """Bytes at the height of a phase; of parts that can be cut, the least."""
        there = [part for part in self.parts if part.phase in (ALWAYS, phase)]
        return sum(part.least if least and part.least is not None else part.size for part in there)

    @property
    def peak(self) -> float:
        """Bytes that there must be on each accelerator."""
        return max(map(self.in_phase, self.phases)) / self.share

    def is_room_for_vllm(self, there: float) -> bool:
        """Args: there: Bytes of an accelerator."""
        return self.in_vllm <= (1 - self.share) * there

    @property
    def tightest(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=self.in_phase)


@dataclass(frozen=True)
class Job:
    """A run to be planned: models, lengths in tokens, and the options of its stages."""

    policy: Size
    scalar: Size
    """The reward model's."""
    prompt_length: int
    response_length: int
    sft: SFTTrainerConfig | None
    """None where there are no demonstrations."""
    reward: RewardTrainerConfig
    ppo: PPOTrainerConfig
    inference: BulkInferenceConfig = field(default_factory=BulkInferenceConfig)
    grpo: GRPOTrainerConfig | None = None
    """Of a run with a grader, which has no SFT, reward or PPO trainer; `ppo` then has the same tuning."""

    @property
    def length(self) -> int:
        return self.prompt_length + self.response_length

    @property
    def reward_beside(self) -> bool:
        """Whether PPO's reward model is an adapter on the policy's base (rlhf.models.scoring.RewardModel.beside)."""
        stands_on_base = self.sft is None or (self.sft.tuning != "full" and self.sft.save != "merged")
        return (
            self.ppo.tuning != "full"
            and not self.ppo.spreads_weights
            and self.reward.tuning == self.ppo.tuning
            and self.reward.save != "merged"
            and not self.reward.base_model
            and stands_on_base
        )

    @property
    def continues_adapter(self) -> bool:
        """Whether PPO starts from SFT's adapter, of which a frozen copy is the reference."""
        return self.ppo.tuning != "full" and self.sft is not None and self.sft.tuning != "full"


def sft_trainer(job: Job, processes: int) -> Need | None:
    """Supervised fine-tuning; every process holds all of the model. None where there are no demonstrations."""
    config = job.sft
    if config is None:
        return None
    rows = config.microbatch_size or max(1, config.batch_size // processes)
    tokens = rows * job.length
    return _trainer(job.policy, config, processes, tokens, job.length, [_logits(job.policy, tokens, "training")])


def reward_trainer(job: Job, processes: int) -> Need | None:
    """Reward modelling; every process holds all of the model. None where a grader takes its place."""
    if job.grpo is not None:
        return None
    tokens = max(job.reward.tokens_per_forward, 2 * job.length)
    scoring = _inside(job.scalar, job.reward.eval_batch_size * job.length, HALF, job.length, grad=False)
    evaluation = Part("activations in evaluation", scoring, "evaluation")
    return _trainer(job.scalar, job.reward, processes, tokens, job.length, [evaluation])


def ppo_trainer(job: Job, processes: int) -> Need | None:
    """PPO: policy, reference, critic and reward model, in the phases of an update. None of a run with a grader."""
    if job.grpo is not None:
        return None
    config, policy = job.ppo, job.policy
    precision = FLOAT if config.precision == "float32" else HALF
    held = _spread(config, processes)
    trains_all = config.tuning == "full"
    adapter = _adapter(job, config)
    own = config.critic == "own"
    trained = (policy.parameters if trains_all else adapter) * (2 if own else 1)
    parts = [
        Part("policy", held(policy, _weights(policy, config.tuning)), counted=True),
        *([] if trains_all else [Part("adapter", held(policy, FLOAT * adapter), counted=True)]),
    ]
    if config.reference == "auto" and trains_all:
        parts.append(Part("reference", held(policy, FLOAT * policy.parameters), counted=True))
    elif config.reference == "auto" and job.continues_adapter:
        parts.append(Part("reference", held(policy, FLOAT * adapter), counted=True))
    if own:
        parts.append(Part("critic", held(policy, FLOAT * trained / 2), counted=True))
    if job.reward_beside:
        parts.append(Part("reward model", FLOAT * (_adapter(job, job.reward) + policy.hidden), counted=True))
    else:
        # Merged, and so in float32 where its base is kept in 4 bits, too.
        parts.append(Part("reward model", FLOAT * job.scalar.parameters, counted=True))
    optimiser = held(policy, MOMENTS * trained)
    if config.zero_stage in (1, 2):
        optimiser = (MOMENTS + FLOAT) * trained / processes  # each has its part of the weights once more
    parts.append(Part("optimiser", optimiser, counted=True))
    gradients = FLOAT * trained if config.zero_stage in (1, 2) else held(policy, FLOAT * trained)
    tokens = max(config.microbatch_tokens, job.length)
    trunks = 2 if own else 1
    checkpointed = config.activation_checkpointing is not False
    parts += [
        *_sampling(job, config.rollout_tokens, _cache(policy, precision), synced=_in_step(config, processes)),
        Part("activations in scoring", _scoring(job, precision), "scoring"),
        Part("gradients", gradients, "update", counted=True),
        Part("activations", trunks * _activations(policy, tokens, precision, job.length, checkpointed), "update"),
        _logits(policy, min(config.logits_at_once, tokens), "update"),
        Part("casts", _casts(policy, config.tuning, precision) * trunks, "update"),
    ]
    if _in_step(config, processes):
        models = [part for part in parts if part.name in ("policy", "adapter", "reference", "critic", "reward model")]
        copies = sum(part.name in ("reference", "critic") and trains_all for part in models)
        whole = (1 + copies) * _weights(policy, config.tuning) + models[-1].size
        there = sum(part.size for part in models) + optimiser  # which comes later
        parts += [
            Part("models, before they are spread", max(0, whole - there), "loading"),
            Part("gathered layers", 2 * FLOAT * policy.largest_layer, "update"),
            Part("weights gathered to save", FLOAT * policy.parameters, "saving"),
        ]
    loaded_too = 0 if job.reward_beside else FLOAT * job.scalar.parameters
    need = _on_machine(parts, policy, config, processes, loaded_too)
    return _beside_vllm(need, job) if config.engine == "vllm" else need


def grpo_trainer(job: Job, processes: int) -> Need | None:
    """GRPO: policy and reference; every process holds all of them. None of a run without a grader."""
    config, policy = job.grpo, job.policy
    if config is None:
        return None
    rows = config.microbatch_size or max(1, config.batch_size // processes)
    # Log-probabilities of the reference are computed for a micro-batch at a time, too.
    further = [
        *_sampling(job, config.rollout_tokens, _cache(policy, HALF)),
        _logits(policy, min(rows * job.response_length, LOGITS_AT_ONCE), "training"),
    ]
    if config.kl_coeff and config.tuning == "full":
        further.append(Part("reference", FLOAT * policy.parameters, counted=True))
    need = _trainer(policy, config, processes, rows * job.length, job.length, further)
    return _beside_vllm(need, job) if config.engine == "vllm" else need


def bulk_inference(job: Job, processes: int) -> Need:
    """Sampling from the tuned policy, in the precision that it computes in; an adapter is merged in float32 before."""
    policy, tuning = job.policy, job.ppo.tuning
    is_adapter = tuning != "full" and job.ppo.save != "merged"
    precision = FLOAT if job.inference.precision == "float32" else HALF
    if tuning == "qlora" and is_adapter:
        weights = [Part("policy", _weights(policy, "qlora") + FLOAT * _adapter(job, job.ppo), counted=True)]
        cache = FLOAT * policy.cache_per_token
    else:
        weights = [Part("policy", precision * policy.parameters, "sampling", counted=True)]
        if is_adapter:
            merging = FLOAT * (policy.parameters + _adapter(job, job.ppo))
            weights.append(Part("policy and adapter, merged", merging, "loading", counted=True))
        cache = precision * policy.cache_per_token
    parts = [*weights, *_sampling(job, job.inference.tokens_at_once, cache)]
    return _on_machine(parts, policy, job.ppo, 1, number=FLOAT if is_adapter else precision)


def evaluator(job: Job, processes: int) -> Need | None:
    """Scores of completions by the reward model, in float32. None where a grader takes its place."""
    if job.grpo is not None:
        return None
    size = job.scalar
    parts = [
        Part("reward model", _loaded_scalar(job), counted=True),
        Part("activations in scoring", _inside(size, _scored(job), FLOAT, job.length, grad=False)),
    ]
    return _on_machine(parts, size, job.reward, 1)


def publisher(job: Job, processes: int) -> Need | None:
    """Merging of an adapter into its base, without an accelerator. None where the tuned model is whole."""
    if job.ppo.tuning == "full" or job.ppo.save == "merged":
        return None
    whole = FLOAT * job.policy.parameters
    return Need([], whole + 4 * 2**30, 2 * whole)  # its base as downloaded, and the merged model


STAGES: dict[str, Callable[[Job, int], Need | None]] = {
    "sft_trainer": sft_trainer,
    "reward_trainer": reward_trainer,
    "ppo_trainer": ppo_trainer,
    "grpo_trainer": grpo_trainer,
    "bulk_inference": bulk_inference,
    "evaluator": evaluator,
    "publisher": publisher,
}


def _trainer(size: Size, config: TrainerConfig, processes: int, tokens: int, length: int, further: list[Part]) -> Need:
    """A trainer of Hugging Face's: each process holds everything."""
    adapter = 0 if config.tuning == "full" else config.lora.rank * size.adapter_per_rank
    trained = adapter or size.parameters
    parts = [
        Part("weights", _weights(size, config.tuning), counted=True),
        *([Part("adapter", FLOAT * adapter, counted=True)] if adapter else []),
        Part("optimiser", MOMENTS * trained, counted=True),
        Part("gradients", FLOAT * trained, "training", counted=True),
        *([Part("gradients on their way", FLOAT * trained, "training")] if processes > 1 else []),  # DDP's buckets
        Part("activations", _activations(size, tokens, HALF, length, True), "training"),
        Part("casts", _casts(size, config.tuning, HALF), "training"),
        *further,
    ]
    return _on_machine(parts, size, config, processes)


def _on_machine(
    parts: list[Part], size: Size, config: TrainerConfig, processes: int, beside: float = 0, number: int = FLOAT
) -> Need:
    """
    Args:
        beside: Bytes of another model that is loaded after the first.
        number: Bytes of each of its weights as it is loaded.
    """
    overhead = OVERHEAD + (EXCHANGE if processes > 1 else 0)
    whole = FLOAT * size.parameters
    # In 4 bits a model goes to the accelerator as it is read.
    loaded = FLOAT * size.largest_layer if config.tuning == "qlora" else number * size.parameters
    trained = whole if config.tuning == "full" else FLOAT * config.lora.rank * size.adapter_per_rank
    kept = (
        2 * 3 * trained if config.checkpoint_dir else 0
    )  # weights and moments; the last one goes when the next is there
    return Need([*parts, Part("overhead", overhead)], max(loaded, beside) + 4 * 2**30, 2 * whole + kept)


def _beside_vllm(need: Need, job: Job) -> Need:
    in_vllm = HALF * (job.policy.parameters + job.length * job.policy.cache_per_token)
    return replace(need, share=1 - VLLM_SHARE, in_vllm=in_vllm)


def _weights(size: Size, tuning: str) -> float:
    if tuning != "qlora":
        return FLOAT * size.parameters
    return FOUR_BITS * size.linear + FLOAT * (size.parameters - size.linear)


def _adapter(job: Job, config: TrainerConfig) -> int:
    """Numbers of a stage's adapter: one that goes on with SFT's has its rank."""
    first = job.sft if job.sft is not None and job.sft.tuning != "full" else config
    return first.lora.rank * job.policy.adapter_per_rank


def _loaded_scalar(job: Job) -> float:
    """Bytes of a reward model by itself."""
    if job.reward.tuning != "qlora" or job.reward.save == "merged":
        return FLOAT * job.scalar.parameters
    return _weights(job.scalar, "qlora") + FLOAT * job.reward.lora.rank * job.scalar.adapter_per_rank


def _spread(config: PPOTrainerConfig, processes: int) -> Callable[[Size, float], float]:
    """What of a model's bytes each process holds: with FSDP its share of the layers, the rest in full."""
    if processes > 1 and config.zero_stage == 3:
        return lambda size, count: count / processes
    if processes > 1 and config.sharding == "fsdp":

        def share(size: Size, count: float) -> float:
            in_layers = size.layer_parameters / size.parameters
            return count * (in_layers / processes + 1 - in_layers)

        return share
    return lambda size, count: count


def _in_step(config: PPOTrainerConfig, processes: int) -> bool:
    return processes > 1 and (config.sharding == "fsdp" or config.zero_stage == 3)


def _sampling(job: Job, tokens_at_once: int, cache: float, synced: bool = False) -> list[Part]:
    """Keys and values, and what the prompts' pass needs; halved where memory runs out, unless processes keep step."""
    rows = max(1, tokens_at_once // job.length)

    def taken(rows: int) -> float:
        prompts = rows * job.prompt_length
        if not synced:
            prompts = min(prompts, max(PROMPTS_AT_ONCE, job.prompt_length))
        choosing = rows * job.policy.vocabulary * 28  # logits, probabilities, and their sums in double precision
        inside = _inside(job.policy, prompts, HALF, job.prompt_length, grad=False)
        return rows * (job.length + CACHE_GROWTH) * cache + max(inside, choosing)

    return [Part("KV cache and sampling", taken(rows), "sampling", None if synced else taken(1))]


def _cache(size: Size, precision: int) -> float:
    """Bytes of keys and values for each token, over weights in float32: rotated keys are in float32 again."""
    if precision == FLOAT or size.kind == "seq2seq":
        return precision * size.cache_per_token
    return (FLOAT + HALF) / 2 * size.cache_per_token


def _scored(job: Job) -> int:
    return min(SCORED_AT_ONCE, 64 * job.length)


def _scoring(job: Job, precision: int) -> float:
    return _inside(job.scalar, _scored(job), precision, job.length, grad=False)


def _activations(size: Size, tokens: int, precision: int, length: int, checkpointed: bool) -> float:
    """Inputs of all layers, and all of one; or all of all."""
    if not checkpointed:
        return size.layers * _inside(size, tokens, precision, length, grad=True)
    return FLOAT * tokens * size.hidden * size.layers + _inside(size, tokens, precision, length, grad=True)


def _inside(size: Size, tokens: int, precision: int, length: int, grad: bool) -> float:
    """What one layer takes."""
    scores = size.heads * length * (precision + FLOAT) if size.kind == "seq2seq" else 0  # a bias rules fast kernels out
    if not grad:
        return tokens * (4 * FLOAT * size.hidden + 3 * precision * size.intermediate + scores)
    return tokens * (6 * FLOAT * size.hidden + precision * size.layer_width + 2 * scores)


def _logits(size: Size, tokens: int, phase: str) -> Part:
    """As they come, in float32, their softmax, and gradients of both."""
    return Part("logits", tokens * size.vocabulary * (2 * HALF + 3 * FLOAT), phase)


def _casts(size: Size, tuning: str, precision: int) -> float:
    """Copies of weights in bfloat16: autocast keeps those of trained ones, and makes the others for each use."""
    if precision == FLOAT:
        return 0.0
    return HALF * (size.parameters if tuning == "full" else size.largest_layer)


def gib(count: float) -> str:
    """For people."""
    return f"{count / 2**30:,.1f}" if count >= 0.05 * 2**30 else "0.0"
