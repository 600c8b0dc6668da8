"""Uploads to the Hugging Face hub, and what a failed upload says."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming_upload(folder: str | Path, repo: str, again: str) -> Iterator[None]:
    """Turn errors of the hub and its HTTP client into an OSError; `again` says how to repeat the upload."""
    try:
        yield
    except Exception as error:  # each major version of huggingface_hub raises errors of another HTTP client
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise OSError(
            f"{folder} is written, but cannot be uploaded to {repo} ({reason}): log in with `hf auth login`, "
            f"and {again}"
        ) from error


def push_files(folder: Path, repo: str, files: Sequence[str], *, private: bool) -> str:
    """Upload files of a folder as a data set, and return its address.

    `files` are names and patterns; other files in the folder are not uploaded. `private` applies to a new
    data set, and does not change an existing one. Raises OSError, with the reason, if the upload fails.
    """
    from huggingface_hub import HfApi

    with naming_upload(folder, repo, "run the same command again with overwrite=true"):
        api = HfApi()
        address = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id, repo_type="dataset", folder_path=folder, allow_patterns=list(files)
        )
    return str(address)
