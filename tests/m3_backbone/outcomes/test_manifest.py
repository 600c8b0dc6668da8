"""JSON objects with a digest of their content."""

import json

import pytest

from m3_backbone.outcomes.manifest import DIGEST, seal, unseal

CONTENT = {"value": 0.25, "names": ["é", "b"], "nested": {"b": 1, "a": None}}


def test_what_is_sealed_comes_back():
    assert unseal(json.loads(json.dumps(seal(CONTENT)))) == CONTENT
    # The order of the keys is no part of the content.
    turned = dict(reversed(seal(CONTENT).items()))
    assert unseal(turned) == CONTENT


@pytest.mark.parametrize("change", [{"value": 0.5}, {"names": []}, {"further": 1}, {DIGEST: "0" * 16}])
def test_a_change_is_seen(change):
    with pytest.raises(ValueError, match="does not have the digest that it names"):
        unseal({**seal(CONTENT), **change})


def test_an_object_of_an_earlier_version_is_taken_as_it_is():
    assert unseal(CONTENT) == CONTENT
