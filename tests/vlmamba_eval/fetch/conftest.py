from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vlmamba_eval.fetch.server import Server
from vlmamba_eval.fetch.http import Http, Patience


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def http() -> Iterator[Http]:
    """A client that loses patience soon."""
    http = Http(Patience(silence=0.5, attempts=3, pause=0.01, longest=2.0))
    yield http
    http.close()
