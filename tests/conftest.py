"""Fixtures of all tests."""

import gc
from collections.abc import Iterator

import pytest
from hydra.core.hydra_config import HydraConfig


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Looking for garbage takes nearly half of the time of importing the tests, whose objects stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def no_configuration_remains() -> Iterator[None]:
    """A command that a test runs in this process leaves no configuration behind for the next test."""
    yield
    HydraConfig.instance().cfg = None
