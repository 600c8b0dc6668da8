"""Files are written whole or not at all, with the mode of any other new file."""

import os
import stat

import numpy as np
import pytest
from safetensors.numpy import save_file

from m3_backbone.outcomes.shards import write_atomically, write_bytes, write_text
from predictor.files import write_arrays, write_json

WRITERS = {
    "text": lambda path: write_text(path, "a\nb\n"),
    "bytes": lambda path: write_bytes(path, b"ab"),
    "json": lambda path: write_json(path, {"a": [1]}),
    # safetensors itself makes files that nobody else can read.
    "arrays": lambda path: write_arrays(path, {"a": np.arange(3)}),
    "a library": lambda path: write_atomically(path, lambda each: save_file({"a": np.arange(3)}, each)),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600), (0o027, 0o640)])
def test_mode_is_that_of_the_umask(tmp_path, writer, mask, mode):
    before = os.umask(mask)
    try:
        WRITERS[writer](tmp_path / "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_fails_leaves_the_file_that_was_there(tmp_path):
    def fail(temporary):
        temporary.write_text("half")
        raise OSError("no space left on device")

    path = tmp_path / "file"
    write_text(path, "before")
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, fail)
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_lines_end_as_on_unix(tmp_path):
    write_text(tmp_path / "file", "é\n")
    assert (tmp_path / "file").read_bytes() == b"\xc3\xa9\n"
