"""The processes of one training run, as torchrun starts them; without it there is one."""

import os
from datetime import timedelta
from typing import Any

PATIENCE = timedelta(hours=2)  # with a process that others wait for: one alone writes a checkpoint, to a store far away


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def rank_on_this_node() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def count_on_this_node() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def gather(part: Any) -> list[Any]:
    """What every process holds, in the order of ranks."""
    if count() == 1:
        return [part]
    import torch.distributed as dist

    parts: list[Any] = [None] * count()
    dist.all_gather_object(parts, part)
    return parts


def join() -> None:
    """Let the processes that torchrun started talk to each other."""
    import torch
    import torch.distributed as dist

    if count() > 1 and not dist.is_initialized():
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(rank_on_this_node())
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)


def any_of(flag: bool) -> bool:
    """Whether it is so in any process."""
    return any(gather(flag))


def interleave(parts: list[list[Any]]) -> list[Any]:
    """Put together again what was dealt out as `items[rank::count]`."""
    items = [None] * sum(map(len, parts))
    for index, part in enumerate(parts):
        items[index :: len(parts)] = part
    return items
