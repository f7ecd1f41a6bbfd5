"""Optimiser, gradients and weights spread over processes by DeepSpeed's ZeRO, which is imported here alone."""

import importlib.util
import itertools
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from rlhf.errors import ConfigError
from rlhf.ppo import zero_options
from rlhf.ppo.config import PPOTrainerConfig
from rlhf.training import processes

MOMENTS = ("exp_avg", "exp_avg_sq")


def require_deepspeed() -> None:
    """Raises: ConfigError: DeepSpeed is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            "sharding: found 'deepspeed', which is not installed; install deepspeed>=0.19.8, or take 'fsdp'"
        )


class Zero:
    """DeepSpeed's engine around what is trained. Its checkpoints, which are pickles, are neither written nor read."""

    def __init__(self, config: PPOTrainerConfig, networks: nn.Module, optimizer: torch.optim.Optimizer):
        """
        Args:
            networks: All that computes, the reference too: at stage 3 all of it is spread.
            optimizer: Ours. DeepSpeed puts its own parts of the weights into its groups, whose rates stay ours to set.

        Raises:
            ConfigError: DeepSpeed refuses the option `deepspeed`.
        """
        import deepspeed

        options = {
            **(config.deepspeed or zero_options.DEFAULT),
            "train_micro_batch_size_per_gpu": 1,  # has to be there, and changes nothing
            "gradient_clipping": config.max_gradient_norm,
            "zero_force_ds_cpu_optimizer": False,  # else weights on the CPU need DeepSpeed's own
        }
        try:
            deepspeed.DeepSpeedConfig(options)
        except (AssertionError, ValueError) as error:
            raise ConfigError(f"deepspeed: {' '.join(str(error).split())}") from error
        # DeepSpeed calls these by their old names, at every step.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        self._optimizer = optimizer
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        self._engine = deepspeed.initialize(model=networks, optimizer=optimizer, config=options)[0]

    @contextmanager
    def one_gradient(self) -> Iterator[None]:
        """Backward passes inside add up; what they come to is summed over processes at the end."""
        with self._engine.coalesce_grad_reduction():
            yield
            for parameter in itertools.chain(*self._groups):
                if parameter.grad is not None:
                    parameter.grad.mul_(processes.count())  # DeepSpeed takes the mean
                elif not _is_spread(parameter):  # another process may have one
                    parameter.grad = torch.zeros_like(parameter)

    def step(self) -> float:
        """Clip the gradient and take a step; the norm before, infinite where it was not finite and no step was taken.

        Clipping and the test for what is not finite are DeepSpeed's, of each process's part.
        """
        self._engine.step()
        return float(self._engine.get_global_grad_norm()) if self._engine.was_step_applied() else math.inf

    def state(self, named: Iterator[tuple[str, nn.Parameter]]) -> dict[str, torch.Tensor]:
        """Whole weights and moments, in the first process, as without DeepSpeed; every process has to ask."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        self._link_moments()
        steps = [moments["step"] for moments in self._optimizer.state.values()]
        tensors = {}
        for name, parameter in named:
            found = {f"weight.{name}": safe_get_full_fp32_param(parameter)}
            if steps:
                place = f"optimizer.{name}"
                found |= {f"{place}.{moment}": safe_get_full_optimizer_state(parameter, moment) for moment in MOMENTS}
                found[f"{place}.step"] = steps[0].clone()  # safetensors stores no tensor twice
            if processes.is_main():
                tensors |= {key: value.cpu() for key, value in found.items()}
        return tensors

    def load_state(self, named: Iterator[tuple[str, nn.Parameter]], tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `state` gave, which every process has."""
        import deepspeed

        steps = (value for key, value in tensors.items() if key.startswith("optimizer.") and key.endswith(".step"))
        step = next(steps, None)
        if step is not None:  # moments are there once a step was taken; one without a gradient changes no weight
            with self.one_gradient():
                pass
            self._engine.step()
            self._link_moments()
        for name, parameter in named:
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(tensors[f"weight.{name}"])
            for moment in MOMENTS if step is not None else ():
                # One process alone has none of weights that never had a gradient.
                value = tensors.get(f"optimizer.{name}.{moment}", torch.zeros_like(tensors[f"weight.{name}"]))
                _set_moment(parameter, value.to(parameter.device), moment)
        self._engine.optimizer.refresh_fp32_params()
        for moments in self._optimizer.state.values():
            moments["step"].copy_(step)

    def _link_moments(self) -> None:
        """Tell weights where their moments are. DeepSpeed does when the first group has its own, and never again."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        for parameters, group in zip(self._groups, self._optimizer.param_groups, strict=True):
            for part in group["params"]:  # stages 1 and 2: this process's, of all of them; stage 3: none
                if part in self._optimizer.state:
                    lazy_init_hp_params_optimizer_state(parameters, part, self._optimizer.state)


def unshard(model: nn.Module) -> None:
    """Let every process hold all weights again, to be saved."""
    import deepspeed

    for parameter in filter(_is_spread, model.parameters()):
        with deepspeed.zero.GatheredParameters([parameter]):
            whole = parameter.data.clone()
        parameter.data = whole


def _is_spread(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_tensor")


def _set_moment(parameter: nn.Parameter, value: torch.Tensor, moment: str) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if not _is_spread(parameter):
        safe_set_full_optimizer_state(parameter, value, moment)
        return
    # The function for whole values fails where a weight's size is no multiple of the number of processes.
    size = parameter.ds_tensor.numel()
    padded = nn.functional.pad(value.flatten(), (0, size * processes.count() - value.numel()))
    safe_set_local_optimizer_state(parameter, padded.narrow(0, size * processes.rank(), size), moment)
