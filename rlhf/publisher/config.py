"""Options of the publisher."""

from pydantic import Field, field_validator

from rlhf.config import StageConfig
from rlhf.models.destination import Destination


class PublisherConfig(StageConfig):
    """Where a tuned model goes, and what is said of it."""

    publish_to: str = Field(
        min_length=1,
        description="Folder that the model is copied to: on disk, file://, gs:// or s3://. One for each model.",
    )
    model_display_name: str = Field(
        "",
        max_length=128,  # as in Vertex's model registry
        # One line, and what JSON holds as it is: Vertex's upload step puts it there unquoted.
        pattern=r'^[^\p{Cc}"\\]*$',
        description="What people call the model, in one line without `\"` and `\\`; empty: the base model's name with "
        "`-rlhf`.",
    )
    figures: dict[str, float] = Field(
        {}, description="The evaluator's metrics by its names; the verdict and what it rests on go into the card."
    )

    @field_validator("publish_to")
    @classmethod
    def _is_a_folder(cls, uri: str) -> str:
        Destination(uri)  # its errors show no password
        return uri
