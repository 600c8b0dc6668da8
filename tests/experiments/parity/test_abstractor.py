import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.parity.abstractor import compare_abstractor
from m3_backbone.llava.queries import QueryTransformer
from tests.experiments.parity.test_recording import run as run  # the fixture
from tests.paths import FIXTURES

FILE = FIXTURES / "mqt_abstractor.safetensors"


@pytest.fixture
def recorded():
    return load_file(FILE)


@pytest.fixture
def write(tmp_path):
    def write_file(tensors, **metadata):
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors, tmp_path / "queries.safetensors", metadata=metadata or None)
        return tmp_path / "queries.safetensors"

    return write_file


@torch.no_grad()
def record(width, hidden, num_queries, num_heads, grid, counts):
    """A file that our own module makes."""
    torch.manual_seed(1)
    model = QueryTransformer(width, hidden, num_queries, num_heads)
    features = torch.randn(2, grid**2, width)
    tokens = {f"tokens.{count}": model(features)[:, :count] for count in counts}
    return {"features": features, **model.state_dict(prefix="query_abstractor."), **tokens}


def test_every_number_of_tokens_agrees_with_the_authors_code():
    deviations = list(compare_abstractor(FILE))
    assert [deviation.where for deviation in deviations] == [
        f"tokens.{count}" for count in (1, 2, 4, 8, 16, 36, 64, 144, 256)
    ]
    assert all(deviation.size <= 1e-6 < deviation.allowed for deviation in deviations)


def test_sizes_are_those_of_the_tensors_and_heads_can_be_given(write):
    tensors = record(24, 20, 64, 8, grid=5, counts=(1, 7, 64))
    for arguments, metadata in (((8,), {}), ((), {"num_heads": "8"}), ((8,), {"num_heads": "4"})):
        deviations = list(compare_abstractor(write(tensors, **metadata), *arguments))
        assert len(deviations) == 3 and all(each.size <= each.allowed for each in deviations)
    with pytest.raises(ValueError, match="width 24 cannot have 16 heads"):
        list(compare_abstractor(write(tensors)))
    other = list(compare_abstractor(write(tensors), 4))
    assert all(each.size > each.allowed for each in other)


@pytest.mark.parametrize("name", ["attn.out_proj.bias", "pos_embed", "ln_v.weight", "proj"])
def test_a_transformer_that_computes_something_else_is_found(recorded, write, name):
    recorded[f"query_abstractor.{name}"] *= 1.01
    deviations = list(compare_abstractor(write(recorded)))
    assert max(deviation.size for deviation in deviations) > deviations[0].allowed


def change(recorded, name, make):
    if make is None:
        return {key: tensor for key, tensor in recorded.items() if not key.startswith(name)}
    return {**recorded, name: make(recorded.get(name))}


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("features", None, "has no query transformer with tokens"),
        ("tokens.", None, "has no query transformer with tokens"),
        ("query_abstractor.", None, "has no query transformer with tokens"),
        ("query_abstractor.proj", None, "proj is missing"),
        ("query_abstractor.query", lambda x: x[0], "query is missing or no matrix"),
        ("query_abstractor.query", lambda x: x[:250], "250 queries are not a square"),
        ("query_abstractor.query", lambda x: torch.zeros(1, 160_000), "size mismatch"),
        ("query_abstractor.ln_k.bias", None, "Missing key"),
        ("query_abstractor.ln_post.bias", lambda x: torch.zeros(64), "Unexpected key"),
        ("features", lambda x: x[..., :60], "features have shape"),
        ("features", lambda x: x[:0], "features have shape"),
        ("features", lambda x: x[0], "features have shape"),
        ("features", lambda x: x[:, :570], "570 patch features are not a square grid"),
        ("tokens.300", lambda x: torch.zeros(2, 300, 96), "more than the 256 queries"),
        ("tokens.36", lambda x: x[:, :35], "tokens.36 have shape"),
    ],
)
def test_another_file_is_one_error_that_names_it(recorded, write, name, make, message):
    with pytest.raises(ValueError, match=message) as error:
        list(compare_abstractor(write(change(recorded, name, make))))
    assert "queries.safetensors" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.long
def test_the_command(run, recorded, write, tmp_path):
    status, printed = run(f"abstractor={FILE}")
    assert status == 0 and "query tokens" in printed and "1e-05" in printed
    recorded["tokens.8"][1, 3, 5] += 1e-3
    status, printed = run(f"abstractor={write(recorded)}")
    assert status == 1 and "FAILED, most at tokens.8" in printed
    recorded["tokens.8"][1, 3, 5] = torch.nan
    assert run(f"abstractor={write(recorded)}")[0] == 1
    file = write(record(24, 20, 64, 8, grid=5, counts=(64,)))
    assert run(f"abstractor={file}")[0] == 2
    assert run(f"abstractor={file}", "abstractor_heads=8")[0] == 0
    status, printed = run(f"abstractor={write(recorded, num_heads='many')}")
    assert status == 2 and "num_heads in the metadata is 'many'" in printed
    shutil.copy(FILE, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(FILE.read_bytes()[:1000])
    status, printed = run(f"abstractor={tmp_path / 'cut.safetensors'}")
    assert status == 2 and "cannot be read" in printed
    status, printed = run(f"abstractor={FIXTURES / 'avg_router.safetensors'}")
    assert status == 2 and "has no query transformer" in printed
    status, printed = run(f"abstractor={tmp_path / 'none'}")
    assert status == 2 and "no file" in printed
