"""A client of the page of some models."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from di4c_lm.core.compose import compose
from di4c_lm.runs.demo.demo import Settings, facts_of
from di4c_lm.runs.demo.server import app

Page = Callable[..., TestClient]


@pytest.fixture(scope="session")
def page() -> Page:
    """A client of the page of some models."""

    def client(**models: Any) -> TestClient:
        made = app(models, facts_of(models, compose(Settings, [])))
        return TestClient(made, base_url="http://127.0.0.1:8421")

    return client
