"""Several demonstrations in one row, none of which sees another.

What is packed is the batch, not the dataset: a step learns from the same demonstrations as it would without, gets
the same gradients, and only computes fewer tokens of padding.
"""

from collections.abc import Sequence

import torch

from rlhf.errors import ConfigError
from rlhf.models.loading import Kind
from rlhf.models.policy import Policy
from rlhf.sft_trainer.demonstrations import IGNORED

_PROBE_TOKENS = 16
# Of what seeing the demonstration before changes in the logits; float32 comes to 1e-6 of it, bfloat16 to 1e-2.
_TOLERANCE = 0.1


class PackingCollator:
    """Lays examples (`input_ids`, `labels`) out one after the other in rows.

    Positions begin anew with each; without an attention mask, transformers takes that for where one sequence ends
    and makes the mask block-diagonal (`masking_utils.find_packed_sequence_indices`). Padding at a row's end is at
    position 0 each time, so it stands alone.

    Args:
        length: Tokens of a row; a longer example has a row of its own.
        pad: Token id to fill rows up with.
    """

    def __init__(self, length: int, pad: int):
        self.length, self.pad = length, pad

    def __call__(self, examples: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `position_ids`, `labels`: each (rows, longest row)."""
        packed = [[examples[i] for i in row] for row in fill_rows([len(e["input_ids"]) for e in examples], self.length)]
        ids = [[token for example in row for token in example["input_ids"]] for row in packed]
        positions = [[place for example in row for place in range(len(example["input_ids"]))] for row in packed]
        # An example's first token follows nothing: what stands before it in the row is another's end.
        labels = [[label for example in row for label in (IGNORED, *example["labels"][1:])] for row in packed]
        width = max(map(len, ids))
        return {
            name: torch.tensor([row + [fill] * (width - len(row)) for row in rows])
            for name, rows, fill in (
                ("input_ids", ids, self.pad),
                ("position_ids", positions, 0),
                ("labels", labels, IGNORED),
            )
        }


def fill_rows(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Best-fit decreasing: each, the longest first, goes where the least room is left over.

    Returns:
        Of each row, which of `lengths` are in it.
    """
    rows: list[list[int]] = []
    left: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [row for row, space in enumerate(left) if space >= lengths[item]]
        if fitting:
            row = min(fitting, key=lambda row: left[row])
        else:
            row = len(rows)
            rows.append([])
            left.append(room)
        rows[row].append(item)
        left[row] -= lengths[item]
    return rows


@torch.no_grad()
def require_packable(policy: Policy) -> None:
    """Refuse a model in which packed demonstrations see each other.

    Two sequences are read in either order. The second must come out as when it is first, where a causal model sees
    nothing else. Some architectures go by neither positions nor mask (Mamba, BLOOM), some make a mask of their own
    (OPT, Falcon).

    Raises:
        ConfigError: The model is an encoder-decoder, or its logits differ.
    """
    model, name = policy.model, policy.model.config.model_type
    if policy.kind is Kind.SEQ2SEQ:
        raise ConfigError(f"packing: found true, but {name!r} is an encoder-decoder model; set it to false")
    one, other = torch.arange(2 * _PROBE_TOKENS, device=model.device).chunk(2)
    ids = torch.stack([torch.cat([one, other]), torch.cat([other, one])])

    def difference(positions: torch.Tensor) -> float:
        """How far the logits of `other`, second and first in the row, are apart."""
        logits = model(input_ids=ids, position_ids=positions.expand(2, -1), use_cache=False).logits.float()
        return (logits[0, _PROBE_TOKENS:] - logits[1, :_PROBE_TOKENS]).abs().max().item()

    model.eval()
    packed, seen = difference(one.repeat(2)), difference(torch.cat([one, other]))
    if packed > _TOLERANCE * seen:
        raise ConfigError(
            f"packing: found true, but in a model of type {name!r} demonstrations in one row see each other (their "
            f"logits differ by {packed:.2g}); set it to false"
        )
