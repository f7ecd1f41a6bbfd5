"""Fixtures that lead every protocol to a server of `tests.stores`, nowhere else; a test file imports them all."""

import contextlib
import os
import socket
from functools import partial
from unittest.mock import patch

import google.auth.compute_engine._metadata
import huggingface_hub.constants
import pytest
from fsspec.registry import _registry as clients

from tests import stores


def forget_clients():
    for client in clients.values():
        client.clear_instance_cache()


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """No credentials, settings or proxies of whoever runs the tests, and no client that remembers another test."""
    for name in os.environ:
        if name.startswith(("AWS_", "GOOGLE_", "GCSFS_", "FSSPEC_", "HF_", "HUGGING_FACE_")) or "proxy" in name.lower():
            monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "CLOUDSDK_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with patch.dict(clients):  # other tests have packages be missing
        yield
        forget_clients()


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch):
    """Nothing outside is asked: not for names, and not for the credentials of a cloud's machine."""
    asked = []
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            asked.append(address)
            raise ConnectionRefusedError(f"{address} is not loopback")
        return connect(self, address)

    def guarded_resolve(host, *args, **kwargs):
        if host not in ("127.0.0.1", "::1", "localhost"):
            asked.append(host)
            raise socket.gaierror(f"{host} is not loopback")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_resolve)
    yield
    assert asked == []


@pytest.fixture(scope="module")
def moto_port():
    with stores.moto() as port:
        yield port


@pytest.fixture
def opened(monkeypatch, moto_port):
    """Opens the store of a protocol, and has the environment lead there."""
    with contextlib.ExitStack() as stack:

        def opened(protocol: str) -> stores.Store:
            kinds = {"s3": partial(stores.s3, moto_port), "gs": stores.gs, "hf": stores.hub, "http": stores.web}
            store = stack.enter_context(kinds[protocol]())
            for name, value in store.environment.items():
                monkeypatch.setenv(name, value)
            # What these packages read of the environment when they are imported:
            if protocol == "gs":
                monkeypatch.setattr(google.auth.compute_engine._metadata, "_NO_GCE_CHECK", True)
            if protocol == "hf":
                urls = f"{store.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
                monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", store.endpoint)
                monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", urls)
                monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
            return store

        yield opened
