"""A tuned model as a folder that servers load, and its copy where it is served from."""

from rlhf.publisher.config import PublisherConfig

__all__ = ["PublisherConfig"]
