"""Options of bulk inference."""

from pydantic import Field

from rlhf.config import StageConfig


class BulkInferenceConfig(StageConfig):
    """Batched generation over a dataset of prompts."""

    temperature: float = Field(
        0.7, ge=0, description="Sampling temperature; 0 is greedy. 0.7 is what Huang et al. 2024 train and sample at."
    )
    batch_size: int = Field(64, ge=1, description="Prompts generated for at once.")
    seed: int = Field(0, ge=0, description="Seeds the sampling.")
