"""Weights spread over processes with PyTorch's FSDP2, layer by layer; what is no layer's every process holds."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel


def shard(model: PreTrainedModel, trunks: Sequence[nn.Module]) -> None:
    """Spread a model's layers over all processes; their gradients are summed over them.

    Args:
        trunks: What is called of it, its layers inside.
    """
    from torch.distributed.fsdp import fully_shard

    kinds = set(model._no_split_modules or [])  # transformers' own names of what one device is to hold whole
    for trunk in trunks:
        for layer in [module for module in trunk.modules() if type(module).__name__ in kinds]:
            sharded = fully_shard(layer)
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other
        fully_shard(trunk, ignored_params={parameter for parameter in trunk.parameters() if not is_spread(parameter)})


def unshard(model: nn.Module) -> None:
    """Let every process hold all weights again, to be saved."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if is_spread(parameter):
                setattr(module, name, nn.Parameter(whole(parameter.detach()), parameter.requires_grad))


def is_spread(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # a DTensor, whose import takes memory that one process need not spend


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that may be spread; every process has to ask."""
    return tensor.full_tensor() if is_spread(tensor) else tensor


def spread_like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """This process's share of a tensor that every process has, spread as `other` is."""
    if not is_spread(other):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Scale gradients, spread or not, so that their norm together is at most `max_norm`; the norm before."""
    kinds = [[p for p in parameters if is_spread(p) == spread] for spread in (True, False)]
    kinds = [kind for kind in kinds if kind]
    norms = [whole(torch.nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds]
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    for kind in kinds:
        torch.nn.utils.clip_grads_with_norm_(kind, max_norm, norm)
    return norm.item()
