"""What is fetched from the hub, when it cannot be asked."""

import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from m3_backbone.loading import weights as hub


@pytest.mark.parametrize("is_offline", [False, True])
def test_only_what_the_repository_lacks_counts_as_absent(monkeypatch, is_offline):
    """A tokenizer without its settings has others: a time-out must not pass for their absence."""

    def download(hub_id, name):
        if name == "lacking.json":
            raise EntryNotFoundError("404")
        if name == "slow.json":
            raise LocalEntryNotFoundError("timed out, and not in the cache")
        return f"cache/{name}"

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "is_offline_mode", lambda: is_offline)
    assert hub.fetch("someone/model", "there.json")
    assert not hub.fetch("someone/model", "lacking.json")
    if is_offline:
        assert not hub.fetch("someone/model", "slow.json")
    else:
        with pytest.raises(OSError, match=r"slow\.json of someone/model could not be fetched"):
            hub.fetch("someone/model", "slow.json")
