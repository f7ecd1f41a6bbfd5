"""Tune the policy with PPO against a reward model, reward functions, or both."""

import contextlib
import tempfile
from pathlib import Path

from rlhf.data.store import read_dataset
from rlhf.errors import DataError
from rlhf.models.card import ModelCard
from rlhf.ppo_trainer.config import PPOTrainerConfig
from rlhf.progress import Progress, say

STAGE = "ppo_trainer"


def run(
    config: PPOTrainerConfig,
    *,
    prompts: str,
    policy: str,
    tuned_policy: str,
    samples: str,
    report: str,
    tensorboard: str,
    reward_model: str = "",
) -> dict[str, float]:
    """Tune `policy` on `prompts` so that its completions earn more, at a cost for leaving what it was.

    Under torchrun every process samples and trains its share, and the first one alone writes.

    Args:
        prompts: Canonical prompts from data_validation.
        policy: Model folder of the policy to start from; it is also the reference of the KL penalty.
        reward_model: Model folder of the reward model; empty where `config.reward_functions` alone reward.
        tuned_policy: Folder for the Model artifact.
        samples: File for JSON lines `update, id, completion, score, kl` of episodes through training.
        report: File for the HTML report.
        tensorboard: Folder for event files.

    Returns:
        updates, episodes, reward_before and reward_after (mean reward of the first and the last updates' episodes), kl
        (nats a completion between the tuned policy and the reference), ended (share of completions that stopped by
        themselves), bad_rewards and not_judged (episodes left out because of a fault, and because nothing judges them),
        skipped_steps, alarms, prompts_cut. Empty on all processes but the first.

    Raises:
        ConfigError: Options do not fit each other or the model, the checkpoint is another run's, or DeepSpeed is asked
            for and not installed.
        DataError: The prompts cannot be read, there are none, or one leaves no room for a completion.
        ModelError: A model cannot be loaded, or was made with another template.
        Stopped: SIGTERM came before training was over.
        TrainingError: Too many steps or rewards were not finite, or a reward function failed.
    """
    rows, manifest, template = read_dataset(prompts, "prompts")
    if not rows:
        raise DataError(f"prompts {prompts}: found no rows, expected at least one")

    from rlhf.models.loading import Source, prepare_torch
    from rlhf.models.policy import Policy
    from rlhf.models.scoring import RewardModel
    from rlhf.ppo.loop import Run, summary, train
    from rlhf.ppo.networks import Networks
    from rlhf.ppo_trainer.page import write_report
    from rlhf.rewards.combined import Rewards
    from rlhf.rewards.groups import fingerprint, flattened, make_grader
    from rlhf.tracking import Tracker
    from rlhf.training import processes
    from rlhf.training.checkpoints import checkpoints_of, raise_if_full
    from rlhf.training.interruption import heed_sigterm
    from rlhf.training.prompts import read_prompts, split_prompts

    if config.sharding == "deepspeed":
        from rlhf.ppo.zero import require_deepspeed

        require_deepspeed()
    prepare_torch(config.seed)
    processes.join()
    source = Source.of(policy)
    with contextlib.ExitStack() as stack:
        graders = [each for grader in config.reward_functions for each in flattened(grader)]
        functions = [stack.enter_context(contextlib.closing(make_grader(each, template))) for each in graders]
        actor, trainee = Policy.to_train(policy, template, config)
        scorer = None
        if reward_model:
            if config.tuning != "full" and not config.spreads_weights:  # processes do not score in step
                scorer = RewardModel.beside(actor.model, reward_model, template)
            scorer = scorer or RewardModel.load(reward_model, template, merged=True)
            if scorer.card is not None:
                scorer.card.require_template(template, reward_model)
        rewards = Rewards(scorer, config.reward_model_weight, functions)
        ready, cut = read_prompts(rows, template, actor, scorer)
        training, held_out = split_prompts(ready, config.held_out_prompts)
        if processes.is_main():
            say(
                STAGE,
                f"{len(training):,} prompts, {config.train_steps:,} updates of {config.batch_size} episodes; "
                f"{len(held_out)} prompts held out; tuned: {trainee.in_words}",
            )
        continues = source.adapter is not None and config.tuning != "full"
        networks = Networks(actor, config, scorer, continues)
        tracker = Tracker(tensorboard if processes.is_main() else None)
        checkpoints = checkpoints_of(
            STAGE,
            config,
            data=manifest.digest,
            template=template.digest,
            starts_from=source.fingerprint,
            rewarded_by=[*([Source.of(reward_model).fingerprint] if reward_model else []), *map(fingerprint, graders)],
        )
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        episodes = scratch / "samples.jsonl"
        interruption = stack.enter_context(heed_sigterm())
        progress = stack.enter_context(Progress(STAGE, config.train_steps, unit="update", shown=processes.is_main()))
        state, skipped = train(
            config,
            networks,
            rewards,
            Run(
                prompts=training,
                held_out=held_out,
                response_length=template.target_sequence_length,
                progress=progress,
                log=tracker.scalars,
                samples=episodes if processes.is_main() else None,
                checkpoints=checkpoints,
                scratch=scratch,
                interruption=interruption,
            ),
        )
        tracker.close()
        networks.unshard()
        if not processes.is_main():
            return {}
        metrics = {"prompts_cut": cut, **summary(state, config, skipped)}
        actor.model = trainee.trained()
        card = ModelCard(
            kind="policy",
            base=trainee.base,
            template_digest=template.digest,
            data_digest=manifest.digest,
            base_in_4_bits=trainee.keeps_adapter and config.tuning == "qlora",
            training=metrics,
        )
        facts = {
            "started from": policy,
            "rewarded by": _rewarded_by(reward_model, config),
            "tuned": trainee.in_words,
            "saved as": "an adapter on its base" if trainee.keeps_adapter else "a whole model",
            "critic": "a head on the policy's trunk" if config.critic == "shared" else "a model of its own",
            "peak learning rate": config.peak_learning_rate,
            "episodes an update": config.batch_size,
            "episodes a step": config.episodes_per_step,
            "epochs": config.epochs,
            "KL coefficient": config.kl_coeff,
            "temperature": config.temperature,
            "prompts cut": cut,
        }
        try:
            actor.save(tuned_policy, card)
            _publish(episodes, Path(samples))
            write_report(report, metrics, state.history, state.examples, state.alarms, facts)
        except Exception as error:
            raise_if_full(error, f"outputs of {STAGE} in {tuned_policy}")
            raise
        if checkpoints is not None:
            checkpoints.remove()
    return metrics


def _rewarded_by(reward_model: str, config: PPOTrainerConfig) -> str:
    parts = [f"{config.reward_model_weight:g} x the reward model"] if reward_model else []
    return " + ".join([*parts, *(f"{each.weight:g} x {each.name}" for each in config.reward_functions)])


def _publish(written: Path, path: Path) -> None:
    """Put a whole file in place in one rename."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_bytes(written.read_bytes())
    unfinished.replace(path)
