"""Scalars over training, as TensorBoard event files."""

from pathlib import Path

from rlhf.errors import DataError


class Tracker:
    """Writes scalars to TensorBoard event files.

    Tags that the closed Vertex pipeline logged keep their names (`rank_loss`, `reward`, `kl_loss`, `rl_loss`,
    `learning_rate`), so that its runs and ours overlay; our own are prefixed with the stage.
    """

    def __init__(self, log_dir: str | Path | None):
        """Start; event files of an earlier try are removed, for what they hold is written again.

        Args:
            log_dir: Folder for the event files; None writes nothing, as in all processes of a run but one.
        """
        self._writer = None
        if log_dir is not None:
            from torch.utils.tensorboard import SummaryWriter

            for stale in Path(log_dir).glob("events.out.tfevents.*"):
                stale.unlink()
            self._writer = SummaryWriter(str(log_dir))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if self._writer is not None:
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def read_scalars(log_dir: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Read every scalar series below `log_dir`.

    Returns:
        {tag: [(step, value), ...]}, in the order logged.

    Raises:
        DataError: The folder does not exist.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not Path(log_dir).is_dir():
        raise DataError(f"TensorBoard logs {str(log_dir)!r}: no such folder, expected one with event files")
    events = EventAccumulator(str(log_dir), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
