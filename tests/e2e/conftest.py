"""What a newcomer needs: an engine, and an image with Python."""

from tests.containers.conftest import base_image, engine

__all__ = ["base_image", "engine"]
