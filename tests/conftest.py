"""Fixtures of all tests."""

from collections.abc import Iterator

import pytest
from hydra.core.hydra_config import HydraConfig


@pytest.fixture(autouse=True)
def no_configuration_remains() -> Iterator[None]:
    """A command that a test runs in this process leaves no configuration behind for the next test."""
    yield
    HydraConfig.instance().cfg = None
