"""Published models in Kubeflow's Model Registry."""

import asyncio
import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping

import aiohttp
from pydantic import Field

from rlhf.config import StageConfig
from rlhf.errors import RlhfError
from rlhf.progress import say
from rlhf.publisher.card import how_tuned

STAGE = "kserve"


class RegistryError(RlhfError):
    """The Model Registry cannot be used; the message is one line."""


class RegistryConfig(StageConfig):
    """As `kubernetes.model_registry` in a profile."""

    url: str = Field(pattern=r"^https?://[^/\s]+$")
    author: str = "rlhf"


def register(
    config: RegistryConfig, name: str, uri: str, version: str, properties: Mapping[str, str | int | float]
) -> bool:
    """Enter a version of a model, and the model with its first version; one that is there gets its new folder.

    Args:
        name: Of the model, as people call it.
        uri: Folder that the model is in.
        version: Names what is in it: the digest, so that a step that is started again finds its own entry.
        properties: Of the version: what it was judged by.

    Returns:
        Whether it was entered now; False where it was there.

    Raises:
        RegistryError: The registry cannot be reached, or refuses.
    """
    with _explained(config.url):
        from model_registry import ModelRegistry

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without a token it says so, and that may be right
            # A loop of its own: the client's default patches the running one.
            with asyncio.Runner() as runner:
                registry = ModelRegistry(
                    config.url,
                    author=config.author,
                    async_runner=lambda request: runner.run(request),
                    log_level=logging.ERROR,  # its warnings are of ports other than 80
                )
                if registry.get_registered_model(name) and registry.get_model_version(name, version):
                    if not (entered := registry.get_model_artifact(name, version)):
                        raise RegistryError(
                            f"Model Registry {config.url}: {name} has a version {version} without its folder, left by "
                            "a step that was ended; archive that version and retry"
                        )
                    moved = ""
                    if entered.uri != uri:
                        moved = f", now as {uri}, before as {entered.uri}"
                        entered.uri = uri
                        registry.update(entered)
                    say(STAGE, f"{name}, version {version}: already in the Model Registry{moved}")
                    return False
                registry.register_model(
                    name,
                    uri,
                    version=version,
                    model_format_name="huggingface",
                    model_format_version="1",
                    version_description=how_tuned(properties),
                    metadata=dict(properties),
                )
    say(STAGE, f"{name}, version {version}: entered in the Model Registry")
    return True


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    from model_registry.exceptions import StoreError
    from mr_openapi.exceptions import ApiException

    try:
        yield
    except ApiException as error:
        hints = {
            401: "it does not take this pod's token",
            403: "this pod's service account may not use it",
            404: "there is no Model Registry at this address, or one that is older than its API v1",
        }
        hint = hints.get(error.status, " ".join(str(error.body or error.reason).split())[:300])
        raise RegistryError(f"Model Registry {url}: {hint} ({error.status})") from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise RegistryError(
            f"Model Registry {url}: does not answer ({type(error).__name__}); is kubernetes.model_registry.url in the "
            "profile right?"
        ) from error
    except StoreError as error:
        raise RegistryError(f"Model Registry {url}: {' '.join(str(error).split())}") from error
