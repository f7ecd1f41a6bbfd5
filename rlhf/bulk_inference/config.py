"""Options of bulk inference."""

from typing import Literal

from pydantic import Field

from rlhf.config import StageConfig


class BulkInferenceConfig(StageConfig):
    """Completions of a dataset of prompts."""

    temperature: float = Field(
        0.7, ge=0, description="Sampling temperature; 0 is greedy. 0.7 is what Huang et al. 2024 train and sample at."
    )
    samples: int = Field(1, ge=1, description="Completions of each prompt. The evaluator compares the first of each.")
    seed: int = Field(
        0,
        ge=0,
        description="Seeds the sampling: with transformers, what is sampled for a prompt depends on this, its id and "
        "the sample's number alone, however the prompts are cut into shards and batches.",
    )
    shards: int = Field(
        1, ge=1, description="Parts that the prompts are cut into; a pipeline has a task for each, side by side."
    )
    format: Literal["canonical", "vertex"] = Field(
        "canonical",
        description="Lines as the evaluator joins them by id, or as the closed Vertex pipeline's bulk inferrer wrote "
        "them: `inputs` of `inputs_pretokenized` and `targets_pretokenized`, and `prediction`.",
    )

    # The machine
    engine: Literal["auto", "transformers", "vllm"] = Field(
        "auto", description="What generates; auto takes vLLM where it is installed and there is a GPU."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of forward passes. auto is bfloat16 on a GPU that has it, else float32."
    )
    tokens_at_once: int = Field(
        16_384,
        ge=1,
        description="Of a batch, padding and room for the completions included; on a CPU, of the batches together that "
        "its cores take side by side. Where memory runs out it is halved.",
    )
    checkpoint_dir: str = Field(
        "",
        description="Folder or URI (gs://, s3://) where completions are kept as they come, for a restarted task to go "
        "on from, by model and shard; empty keeps them beside the output. Removed when the stage has finished.",
    )
