"""Fixtures of all tests."""

import gc
from collections.abc import Iterator

import pytest
from hydra.core.hydra_config import HydraConfig


def pytest_sessionstart() -> None:
    """Looking for garbage takes nearly half of the time of importing the tests, whose objects stay."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def no_configuration_remains() -> Iterator[None]:
    """A command that a test runs in this process leaves no configuration behind for the next test."""
    yield
    HydraConfig.instance().cfg = None
