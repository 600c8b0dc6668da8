"""Uploads to the Hugging Face hub, and what a failed upload says."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming_upload(folder: str | Path, repo: str, again: str) -> Iterator[None]:
    """Turn what the hub and its HTTP client raise into an OSError; `again` is how the upload is repeated."""
    try:
        yield
    except Exception as error:  # errors of another HTTP client in every major version of huggingface_hub
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise OSError(
            f"{folder} is written, but cannot be uploaded to {repo} ({reason}): log in with `hf auth login`, "
            f"and {again}"
        ) from error


def push_files(folder: Path, repo: str, files: Sequence[str], *, private: bool) -> str:
    """Upload files of a folder as a data set, and return its address.

    `files` are names and patterns: what else lies in the folder stays there. `private` is for a new data set;
    one that exists stays as it is. Raises OSError, with the reason, if that fails.
    """
    from huggingface_hub import HfApi

    with naming_upload(folder, repo, "run the same command again with overwrite=true"):
        api = HfApi()
        address = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id, repo_type="dataset", folder_path=folder, allow_patterns=list(files)
        )
    return str(address)
