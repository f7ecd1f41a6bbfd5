"""Event files as others write them, without torch."""

from collections.abc import Iterable, Mapping
from pathlib import Path


def write_events(folder: Path, series: Mapping[str, Iterable[tuple[int, float]]], as_tensors: bool = False) -> None:
    """An event file more in `folder`.

    Args:
        as_tensors: As TensorFlow 2's `tf.summary.scalar`, and so the Vertex pipeline; else as TensorFlow 1 and torch.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))
    for tag, points in series.items():
        for step, value in points:
            simple = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.add_event(Event(step=step, summary=scalar_pb(tag, value) if as_tensors else simple))
    writer.close()
