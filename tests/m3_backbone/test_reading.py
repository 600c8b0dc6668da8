"""Git LFS pointers, which a clone without Git LFS has in place of large files, are called that everywhere."""

import pytest

from experiments.tasks.rows import RowFile
from m3_backbone.outcomes.shards import read_features, read_header
from m3_backbone.reading import is_pointer, read_json
from predictor.files import digest_file
from predictor.files import read_arrays as read_predictor_arrays
from predictor.files import read_json as read_predictor_json

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 13000000\n"


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", read_json),
        ("train-00000.parquet", read_header),
        ("train-00000.parquet", read_features),
        ("questions.jsonl", RowFile),
        ("questions.json", RowFile),
        ("config.json", read_predictor_json),
        ("weights.safetensors", read_predictor_arrays),
        ("weights.safetensors", digest_file),
    ],
)
def test_a_pointer_is_called_that(tmp_path, name, read):
    path = tmp_path / name
    path.write_text(POINTER)
    with pytest.raises(
        ValueError, match=rf"{name} is a Git LFS pointer and not the file itself: .*git lfs pull"
    ):
        read(path)


def test_only_a_pointer_is_one():
    assert is_pointer(POINTER.encode()) and not is_pointer(b"") and not is_pointer(POINTER[1:].encode())
