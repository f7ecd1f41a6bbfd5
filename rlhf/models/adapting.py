"""Models made ready to be trained as their options say, and made again from what was saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel

from rlhf.errors import ConfigError, ModelError
from rlhf.models.loading import Source
from rlhf.training.config import TrainerConfig

if TYPE_CHECKING:  # see rlhf.models.tuning
    from peft import PeftModel

LoadBase = Callable[[bool], tuple[PreTrainedModel, list[str]]]
"""Takes whether to hold the base model in 4 bits; returns it, and the names of modules that its checkpoint lacks."""


def is_adapted(model: PreTrainedModel | PeftModel) -> bool:
    return hasattr(model, "peft_config")


def save(model: PreTrainedModel | PeftModel, folder: str | Path, base: str) -> None:
    """Write a whole model, or an adapter that names `base`."""
    if is_adapted(model):
        from rlhf.models.tuning import save_adapter

        save_adapter(model, folder, base)
    else:
        model.save_pretrained(folder)


def load(source: Source, load_base: LoadBase, merged: bool = False) -> PreTrainedModel | PeftModel:
    """A model as it was saved: whole, or as an adapter on its base.

    Args:
        merged: Merge an adapter into its base.

    Raises:
        ModelError: Neither the checkpoint nor the adapter has weights of some module, such as a score head.
    """
    model, lacking = load_base(source.in_4_bits)
    if source.adapter is not None:
        from rlhf.models import tuning

        came = tuning.whole_modules(source.adapter)
        lacking = [name for name in lacking if name not in came]
        model = tuning.load_adapter(model, source.adapter)
    if lacking:
        raise ModelError(
            f"model {source.reference!r}: has no weights for {', '.join(lacking)}, which would be random numbers; "
            "train it for this first (a reward model: reward_trainer), or name a model that was"
        )
    return merge(model, load_base) if merged and is_adapted(model) else model


def merge(model: PeftModel, load_base: LoadBase) -> PreTrainedModel:
    """One set of weights from an adapter and its base."""
    from rlhf.models import tuning

    return tuning.merge(model, lambda: load_base(tuning.is_in_4_bits(model))[0])


@dataclass(frozen=True)
class Trainee:
    """A model ready to be trained."""

    model: PreTrainedModel | PeftModel
    new_modules: list[str]
    """Modules that no checkpoint held."""
    base: str
    """Reference of the base model that it comes from."""
    keeps_adapter: bool
    """Whether it is to be saved as an adapter."""
    in_words: str
    """How it is tuned, for people."""
    load_base: LoadBase

    def trained(self) -> PreTrainedModel | PeftModel:
        """The model as it is to be saved, once it is trained."""
        return merge(self.model, self.load_base) if is_adapted(self.model) and not self.keeps_adapter else self.model


def prepare(
    source: Source,
    config: TrainerConfig,
    load_base: LoadBase,
    task: str,
    heads: Callable[[PreTrainedModel], list[str]],
    dropout: bool = True,
) -> Trainee:
    """Load the model to start from and adapt it.

    An adapter is trained further, for another task too: a reward model that starts from an adapted policy stands on
    the same base model, which need not be copied. Its rank is then the policy's.

    Args:
        source: The model to start from.
        task: A name of PEFT's TaskType, such as SEQ_CLS.
        config: tuning, lora, save.
        load_base: Loads `source.weights` for `task`.
        heads: Names of modules that are trained in full whatever the tuning.
        dropout: Leave the base model's own dropout on while it is trained; an adapter's is `config.lora`'s.

    Raises:
        ConfigError: An adapter is to be saved whose base only this pipeline's earlier stage has.
        ModelError: The model cannot be loaded or adapted.
    """
    if config.tuning == "lora" and source.in_4_bits:
        raise ConfigError(
            f"tuning: found 'lora', but {source.reference!r} is an adapter that was fitted to its base in 4 bits; use "
            "'qlora', or 'full' to merge the two"
        )
    base, new_modules = load_base(config.tuning == "qlora" or (config.tuning == "full" and source.in_4_bits))
    if not dropout:
        switch_dropout_off(base)
    whole = _outermost([*new_modules, *heads(base)])
    if config.tuning == "full":
        if source.adapter is None:
            return Trainee(base, new_modules, source.base, False, "all weights", load_base)
        adapted, came = _continued(base, source, task, whole)
        new_modules = [name for name in new_modules if name not in came]
        model = merge(adapted, load_base).requires_grad_(True)  # PEFT had frozen it
        if not dropout:
            switch_dropout_off(model)
        words = "all weights, the adapter it came with merged into them"
        return Trainee(model, new_modules, source.base, False, words, load_base)
    bits = ", base in 4 bits" if config.tuning == "qlora" else ""
    if source.adapter is not None:
        model, came = _continued(base, source, task, whole)
        new_modules = [name for name in new_modules if name not in came]
        rank = model.peft_config[model.active_adapter].r
        keeps = config.save != "merged"
        words = f"the adapter it came with, of rank {rank}{bits}"
        return Trainee(model, new_modules, source.base, keeps, words, load_base)
    if config.save == "adapter" and not source.is_plain:
        raise ConfigError(
            f"save: found 'adapter', but it would stand on {source.reference!r}, which only an earlier stage's output "
            "holds; use 'merged' or 'auto', or tune that stage with an adapter too"
        )
    keeps = config.save == "adapter" or (config.save == "auto" and source.is_plain)
    from rlhf.models import tuning

    model = tuning.add_adapter(base, task, config.lora, whole)
    words = f"an adapter of rank {config.lora.rank}{bits}"
    return Trainee(model, new_modules, source.base, keeps, words, load_base)


def _continued(base: PreTrainedModel, source: Source, task: str, whole: list[str]) -> tuple[PeftModel, list[str]]:
    from rlhf.models import tuning

    continued = tuning.continue_adapter(base, source.adapter, task, whole)
    if continued is None:
        raise ModelError(
            f"model {source.reference!r}: its adapter's weights have no place in a {type(base).__name__}; save that "
            "model with save 'merged'"
        )
    return continued


_NOISE = ("dropout", "layerdrop", "jitter")
# Of PhiMoE's routers, and no noise but a threshold: how near scores are whose experts share a token, at any time. They
# draw experts while they are trained (sparsemixer, Liu et al. 2023).
_THRESHOLD = "router_jitter_noise"


def switch_dropout_off(model: PreTrainedModel) -> None:
    """In modules, and in those numbers that no module stands for, of layers that are left out (LayerDrop) and of noise
    in routers too; the config stays as it was."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and name != _THRESHOLD and any(noise in name for noise in _NOISE):
                setattr(module, name, 0.0)


def train_without_draws(model: PreTrainedModel) -> None:
    """`train()`, but for routers that would draw experts: training and sampling go through the same ones."""
    model.train()
    for module in model.modules():
        if hasattr(module, _THRESHOLD):
            module.eval()


def _outermost(names: list[str]) -> list[str]:
    return sorted({n for n in names if not any(n.startswith(f"{other}.") for other in names)})
