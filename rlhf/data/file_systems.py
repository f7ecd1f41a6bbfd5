"""Where files lie: fsspec's file systems, with bounds on how long a store may keep silent, and no secret in a name."""

import os
import re
from typing import Any

import fsspec

# How long a store may keep silent before it is taken to be gone. With the tries of each client that is a minute in all,
# and a minute and a half with gcsfs, which tries six times and waits for half a minute between.
SILENCE_SECONDS = 30
GCS_SILENCE_SECONDS = 10
S3_SILENCE_SECONDS = 15
S3_TRIES = 2  # by s3fs, and each of these by its client, as both know errors that the other does not try again after

_S3 = ("s3", "s3a")
_USER = re.compile(r"(?<=://)[^/@\s]+@")
_SECRET = re.compile(r"([?&][^=&\s]*(?:sig|token|key|secret|cred|pass|auth)[^=&\s]*=)[^&\s)'\"]+", re.IGNORECASE)


def file_system(uri: str) -> tuple[Any, str]:
    """The file system of a path or URI, and the path there.

    Raises:
        ImportError: The protocol needs a package that is not installed.
        ValueError: The protocol is not known.
    """
    protocol = uri.partition("://")[0]
    fs, path = fsspec.core.url_to_fs(uri, **_bounds(protocol))
    if protocol in _S3:
        fs.retries = S3_TRIES
    return fs, path


def redacted(text: str) -> str:
    """The text without passwords and signatures in its URIs."""
    return _SECRET.sub(r"\1…", _USER.sub("…@", text))


def _bounds(protocol: str) -> dict[str, Any]:
    # The clients wait for minutes by default, gcsfs without end.
    if protocol in _S3:
        return {"config_kwargs": {"read_timeout": S3_SILENCE_SECONDS, "retries": {"total_max_attempts": S3_TRIES}}}
    if protocol in ("gs", "gcs"):
        # gcsfs, once imported, asks for each bucket's type over gRPC, which takes a minute where a firewall lets none
        # through. Zonal buckets need it: set it to true for them.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=GCS_SILENCE_SECONDS, sock_read=GCS_SILENCE_SECONDS)
        return {"requests_timeout": timeout}
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)
        return {"client_kwargs": {"timeout": timeout}}
    return {}
