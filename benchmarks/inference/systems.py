"""One system on the benchmark's prompts, in a process of its own: `python -m benchmarks.inference.systems`.

Seconds are those of generating alone; the model stands ready before.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import get_worker_info

from benchmarks.inference.models import MOST

_PEER_BATCH = 8

Answers = tuple[list[str], float, float | None]  # texts, seconds, seconds of them in forward passes


def ours(folder: str, texts: list[str]) -> Answers:
    """The stage, from canonical prompts to its file of predictions."""
    from rlhf.bulk_inference import BulkInferenceConfig
    from rlhf.bulk_inference.stage import run
    from rlhf.data.store import write_dataset
    from rlhf.data.template import Template
    from rlhf.models import engines

    template = Template(prompt_sequence_length=1024, target_sequence_length=MOST)
    spent: list[float] = []
    find = engines.inference_engine

    def timed(*arguments: Any) -> Any:
        policy, engine = find(*arguments)
        clock = _time_forward_passes(policy.model)
        batches = engine.batches

        def all_of(*given: Any) -> Any:
            started = time.perf_counter()
            yield from batches(*given)
            spent.extend((time.perf_counter() - started, clock() / engine.workers))

        engine.batches = all_of
        return policy, engine

    engines.inference_engine = timed
    with tempfile.TemporaryDirectory() as name:
        rows = [{"id": str(i), "prompt": text} for i, text in enumerate(texts)]
        write_dataset(Path(name, "prompts"), "prompts", rows, template)
        out = Path(name, "out.jsonl")
        run(BulkInferenceConfig(temperature=0.0), prompts=f"{name}/prompts", model=folder, predictions=str(out))
        lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return [line["prediction"] for line in lines], *spent


def pipeline(folder: str, texts: list[str]) -> Answers:
    """transformers' pipeline as its documents show it."""
    generate = transformers.pipeline("text-generation", model=folder, batch_size=_PEER_BATCH)
    generate.tokenizer.padding_side = "left"
    started = time.perf_counter()
    found = generate(texts, max_new_tokens=MOST, do_sample=False, return_full_text=False)
    return [answer[0]["generated_text"].strip() for answer in found], time.perf_counter() - started, None


@torch.inference_mode()
def text_to_text(folder: str, texts: list[str]) -> Answers:
    """What transformers' pipeline did for encoder-decoders, before version 5 took that one away."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    started = time.perf_counter()
    answers = []
    for start in range(0, len(texts), _PEER_BATCH):
        batch = tokenizer(texts[start : start + _PEER_BATCH], return_tensors="pt", padding=True)
        batch.pop("token_type_ids", None)
        said = model.generate(**batch, max_new_tokens=MOST, do_sample=False)
        answers += tokenizer.batch_decode(said, skip_special_tokens=True)
    return answers, time.perf_counter() - started, None


def _time_forward_passes(model: torch.nn.Module) -> Callable[[], float]:
    """Seconds of all processes that were forked from this one, or of this one."""
    seconds = torch.zeros(os.cpu_count() or 1, dtype=torch.float64).share_memory_()
    begun: dict[torch.nn.Module, float] = {}

    def begin(module: torch.nn.Module, _: Any) -> None:
        begun[module] = time.perf_counter()

    def end(module: torch.nn.Module, *_: Any) -> None:
        worker = get_worker_info()
        seconds[worker.id if worker else 0] += time.perf_counter() - begun[module]

    # An encoder is called by `generate` itself.
    for timed in (model, model.get_encoder()) if model.config.is_encoder_decoder else (model,):
        timed.register_forward_pre_hook(begin)
        timed.register_forward_hook(end)
    return lambda: float(seconds.sum())


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    texts, seconds, forward = globals()[job["system"]](job["model"], job["prompts"])
    result = {
        "texts": texts,
        "seconds": seconds,
        "forward": forward,
        "tokens": sum(len(text.split()) + 1 for text in texts),
        "threads": torch.get_num_threads(),
        "system": f"transformers {transformers.__version__}, torch {torch.__version__}",
    }
    Path(sys.argv[2]).write_text(json.dumps(result))
