"""Folders of strangers: whatever is wrong with one, loading it is refused in one line that names the file.

Nothing is imported for it: a canary package that leaves a mark when it is imported lies on the path.
"""

import functools
import json
import os
import shutil
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments.training.trained import TrainingSettings, digest_files, load_trained
from experiments.training.trainer import train_predictors
from m3_backbone.outcomes.manifest import seal, unseal
from predictor.adaptive.model import AdaptiveM3
from predictor.base import ScalePredictor
from predictor.calibration import Temperature
from predictor.cascades.hybrid import Hybrid
from predictor.classical.boosting import GradientBoosting
from predictor.files import FolderError
from predictor.learned import LearnedPredictor
from predictor.networks.pooled import MLP
from predictor.policy.pricing import PriceList
from tests.predictor.synthetic import make_labels, write_labels

CONFIG, WEIGHTS, PRICES, HYBRID = (
    "config.json",
    "weights.safetensors",
    "prices.json",
    "hybrid.safetensors",
)
CANARY = "canary_of_strangers"
ADAPTIVE = {
    "library_name": "tokenscale",
    "format": 1,
    "backbone_checkpoint": "tiny_m3",
    "backbone_arguments": {
        **{"name": "tiny_m3", "dtype": "float32", "attn_implementation": None, "prompt": "short"},
        **{"max_new_tokens": 4, "batch_size": 8, "image_batch_size": 8},
    },
    "fingerprints": {"weights": "aa", "prompt": "cc", "decoding": "dd"},
    "scales": [1, 9, 36],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training with a network, its objective, a calibrator, prices and a hybrid."""
    store = tmp_path_factory.mktemp("door")
    parts = {"train": make_labels(60, seed=0), "calibration": make_labels(40, seed=1, split="calibration")}
    write_labels(store / "labels", parts)
    predictor = LearnedPredictor(network=functools.partial(MLP, width=8, num_layers=1), max_epochs=1)
    settings = TrainingSettings(seed=0, validation_fraction=0.2, calibrator=Temperature())
    train_predictors([predictor], labels=store / "labels", folder=store / "predictors", settings=settings)
    (manifest,) = (store / "predictors").glob("*/*/manifest.json")
    return manifest.parent


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A package that leaves a mark when it is imported."""
    package = tmp_path / "path" / CANARY
    package.mkdir(parents=True)
    mark = tmp_path / "mark"
    (package / "__init__.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
        "class Bird:\n    def __init__(self, **arguments):\n        pass\n"
    )
    monkeypatch.syspath_prepend(str(package.parent))
    yield mark
    sys.modules.pop(CANARY, None)


def edit(change):
    """A damage that changes the JSON content of a file."""

    def harm(path):
        content = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps(change(content) or content), "utf-8")

    return harm


def set_key(*keys, value):
    """A damage that sets one key of a JSON file, at any depth."""

    def change(content):
        place = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return edit(change)


def drop_key(*keys):
    def change(content):
        place = content
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]

    return edit(change)


def write(content):
    return lambda path: path.write_bytes(content)


def link_to(name):
    """A damage that replaces the file by a link to its content elsewhere."""

    def harm(path):
        elsewhere = path.parent.parent / "elsewhere" / name
        elsewhere.parent.mkdir(exist_ok=True)
        shutil.move(path, elsewhere)
        path.symlink_to(elsewhere)

    return harm


def loop(path):
    path.unlink()
    path.symlink_to(path.name)


def make_folder(path):
    path.unlink()
    path.mkdir()


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


def grow(size):
    """A damage that makes a file as large as `size`, without taking the room."""
    return lambda path: os.truncate(path, size)


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def arrays(change):
    """A damage that changes the arrays of a safetensors file."""

    def harm(path):
        content = load_file(path)
        change(content)
        path.unlink()
        save_file(content, path)

    return harm


def rename_header(old, new):
    """A damage that replaces text in the header of a safetensors file."""

    def harm(path):
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = content[8 : 8 + length].replace(old, new, 1)
        assert header != content[8 : 8 + length]
        path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])

    return harm


def spoil_first(content):
    name = next(name for name, array in content.items() if array.dtype.kind == "f" and array.size)
    content[name] = np.full_like(content[name], np.nan)


def describe(name, **arguments):
    return {"class": name, "arguments": arguments}


def nest(depth):
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


POPEN = describe("subprocess.Popen", args="touch mark", shell=True)
BIRD = describe(f"{CANARY}.Bird")
BAD_JSON = {
    "empty": write(b""),
    "not UTF-8": write(b'{"class": "\xff\xfe"}'),
    "UTF-16": lambda path: path.write_text(path.read_text("utf-8"), "utf-16"),
    "cut": cut,
    "no object": write(b"[1, 2]"),
    "null": write(b"null"),
    "nested 100,000 deep": write(b"[" * 100_000 + b"]" * 100_000),
    "two million values": write(b"[" + b"0," * 2_000_001 + b"0]"),
    "a terabyte": grow(2**40),
    "a number of 10,000 digits": write(b'{"class": ' + b"9" * 10_000 + b"}"),
    "a link elsewhere": link_to("file"),
    "a link in a circle": loop,
    "a folder": make_folder,
    "a pipe": make_pipe,
    "a key twice": lambda path: path.write_text(
        path.read_text("utf-8").rstrip()[:-1] + ', "x": 1, "x": 2}', "utf-8"
    ),
    "an unknown key": set_key("surprise", value=1),
}
BAD_CONFIG = {
    **BAD_JSON,
    **{f"no {key}": drop_key(key) for key in ("class", "arguments", "scales", "fingerprints", "state")},
    "class is a number": set_key("class", value=7),
    "class is a command": set_key("class", value="import os; os.system('true')"),
    "class without a module": set_key("class", value=""),
    "class of dots": set_key("class", value="..predictor.learned"),
    "class os.system": set_key("class", value="os.system"),
    "class eval": set_key("class", value="builtins.eval"),
    "class of a canary": set_key("class", value=f"{CANARY}.Bird"),
    "class of a canary that looks like ours": set_key("class", value=f"predictor.{CANARY}.Bird"),
    "ours, and no predictor": edit(lambda content: {**content, **describe("predictor.features.Features")}),
    "what a module of ours imports": set_key("class", value="predictor.learned.Path"),
    "arguments are a list": set_key("arguments", value=[1]),
    "an object that runs": set_key("arguments", "seed", value={"object": POPEN}),
    "a partial that would run": set_key("arguments", "objective", value={"partial": POPEN}),
    "an object of a canary": set_key("arguments", "features", value={"object": BIRD}),
    "a canary within a partial of ours": set_key(
        *("arguments", "network", "partial", "arguments", "width"), value={"object": BIRD}
    ),
    "a canary in a list": set_key("arguments", "batch_size", value=[{"deep": [BIRD]}]),
    "a description with other keys": set_key("arguments", "network", "partial", "code", value="x"),
    "a description that is a text": set_key("arguments", "network", "partial", value=f"{CANARY}.Bird"),
    "a calibrator of a canary": set_key("calibrator", value=BIRD),
    "a calibrator that is none": set_key("calibrator", value=describe("predictor.classical.baselines.Mix")),
    "a calibrator of another kind": set_key("calibrator", value=describe("predictor.calibration.Isotonic")),
    "nested 40 deep": set_key("arguments", "seed", value=nest(40)),
    "no scales": set_key("scales", value=[]),
    "scales of text": set_key("scales", value=["1", "9", "36"]),
    "scales that fall": set_key("scales", value=[36, 9, 1]),
    "scales of fractions": set_key("scales", value=[1.5, 9, 36]),
    "a scale that is true": set_key("scales", value=[True, 9, 36]),
    "100 scales": set_key("scales", value=list(range(1, 101))),
    "another number of scales": set_key("scales", value=[1, 9]),
    **{
        f"no fingerprint of {key}": drop_key("fingerprints", key)
        for key in ("weights", "data", "prompt", "decoding")
    },
    "a fingerprint that is empty": set_key("fingerprints", "data", value=""),
    "a fingerprint that is a number": set_key("fingerprints", "weights", value=1),
    "fingerprints in a list": set_key("fingerprints", value=["aa"]),
    "state is a text": set_key("state", value="state"),
    "state without a shape": drop_key("state", "shape"),
    "an argument too many": set_key("arguments", "surprise", value=1),
    "a billion networks": set_key("arguments", "num_members", value=10**9),
    "a network of a terabyte": set_key(
        *("arguments", "network", "partial", "arguments", "width"), value=10**9
    ),
    "a billion layers": set_key(*("arguments", "network", "partial", "arguments", "num_layers"), value=10**9),
    "a shape of text": set_key("state", "shape", "hidden_size", value="24"),
    "more visual tokens than there are": edit(
        lambda content: content["state"].update(
            visual_widths=[10**9], shape={**content["state"]["shape"], "num_visual": 10**9}
        )
    ),
    "a name that is a number": set_key("arguments", "name", value=3),
    "features of a partial": set_key(
        "arguments", "features", value={"partial": describe("predictor.features.Features")}
    ),
}
BAD_ARRAYS = {
    "empty": write(b""),
    "cut": cut,
    "one byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "half a file": write(b"half a file"),
    "a header of an exabyte": write(struct.pack("<Q", 2**60) + b"{}"),
    "a header that is no JSON": write(struct.pack("<Q", 4) + b"nope"),
    "a header in a list": write(struct.pack("<Q", 4) + b"[1] "),
    "a terabyte": grow(2**40),
    "a type that is not read": rename_header(b'"F32"', b'"F8_E4M3"'),
    "a type that is a number": rename_header(b'"F32"', b"32"),
    "a shape that does not fit": rename_header(b'"shape":[', b'"shape":[7,'),
    "a shape below 0": rename_header(b'"shape":[', b'"shape":[-1,-'),
    "places that overlap": rename_header(b'"data_offsets":[', b'"data_offsets":[1'),
    "pickled": write(b"\x80\x04\x95canary"),
    "nan": arrays(spoil_first),
    "an array missing": arrays(lambda content: content.popitem()),
    "an array too many": arrays(lambda content: content.update(surprise=np.zeros(3, np.float32))),
    "a link elsewhere": link_to("file"),
    "missing": lambda path: path.unlink(),
    "a pipe": make_pipe,
}
BAD_WEIGHTS = {
    **BAD_ARRAYS,
    "a temperature of 0": arrays(lambda content: content.update({"calibrator.temperature": np.zeros(3)})),
    "temperatures of other scales": arrays(
        lambda content: content.update({"calibrator.temperature": np.ones(5)})
    ),
    "statistics of another width": arrays(
        lambda content: content.update(statistics_mean=np.zeros(1000, np.float32))
    ),
}
BAD_PRICES = {
    **BAD_JSON,
    "no points": set_key("points", value=[]),
    "points in an object": set_key("points", value={"0": 1}),
    "no default": drop_key("default"),
    "a default that is none": set_key("default", value=None),
    "named points in a list": set_key("named", value=[1]),
    "a named point that is a number": set_key("named", value={"guarantee": 1}),
    **{
        f"a {key} of {value!r}": set_key("default", key, value=value)
        for key, value in [
            *(("price", -1), ("price", float("nan")), ("price", float("inf")), ("price", "0.1")),
            *(("unit", 0), ("unit", -5), ("cost", -1), ("cost", 10**400), ("score", 1.5), ("score", True)),
        ]
    },
    "a point without a unit": drop_key("points", 0, "unit"),
    "a point with more": set_key("points", 0, "more", value=1),
    "prices that fall": edit(lambda content: content["points"].reverse()),
}
BAD_HYBRID = {
    **{name: harm for name, harm in BAD_ARRAYS.items() if name not in ("missing", "a type that is not read")},
    "a unit of 0": arrays(lambda content: content.update(unit=np.zeros(1))),
    "a score of 2": arrays(lambda content: content.update(score=content["score"] + 2)),
    "fitted on other scales": arrays(
        lambda content: content.update(here=np.zeros((3, 6)), beyond=np.zeros((3, 6)))
    ),
}
BAD_HYBRID["a type that is a number"] = rename_header(b'"F64"', b"64")
BAD_RECORD = {
    **BAD_JSON,
    "no value": drop_key("value"),
    "a value of text": set_key("value", value="high"),
    "a value that is nan": set_key("value", value=float("nan")),
    "an identity in a list": set_key("identity", value=[]),
    "files in a list": set_key("files", value=[]),
    "scales of another number": set_key("scales", value=[1]),
    "a seed of text": set_key("identity", "seed", value="0"),
}
PREDICTOR_CASES = [
    (file, name, harm)
    for file, cases in ((CONFIG, BAD_CONFIG), (WEIGHTS, BAD_WEIGHTS))
    for name, harm in cases.items()
]
ALL_CASES = PREDICTOR_CASES + [
    (file, name, harm)
    for file, cases in ((PRICES, BAD_PRICES), (HYBRID, BAD_HYBRID))
    for name, harm in cases.items()
]


def check_refused(load, path, mark):
    """`load` ends in one line that names the file, and has imported nothing."""
    with pytest.raises(FolderError) as caught:
        load()
    message = str(caught.value)
    assert str(path) in message or (path.name == WEIGHTS and str(path.with_name(CONFIG)) in message)
    assert len(message.splitlines()) == 1 and len(message) < 800 and message.isprintable()
    assert CANARY not in sys.modules and not mark.exists()


def ids(cases):
    return [f"{file}: {name}" for file, name, _ in cases]


@pytest.mark.parametrize(("file", "name", "harm"), PREDICTOR_CASES, ids=ids(PREDICTOR_CASES))
def test_predictor_folder_is_refused(trained, canary, tmp_path, file, name, harm):
    folder = shutil.copytree(trained, tmp_path / "predictor")
    harm(folder / file)
    check_refused(lambda: ScalePredictor.load(folder), folder / file, canary)


@pytest.mark.parametrize(("file", "name", "harm"), ALL_CASES, ids=ids(ALL_CASES))
def test_adaptive_model_is_refused(trained, canary, tmp_path, file, name, harm):
    shutil.copytree(trained, tmp_path / "model" / "predictor")
    (tmp_path / "model" / CONFIG).write_text(json.dumps(ADAPTIVE))
    path = tmp_path / "model" / "predictor" / file
    if name == "a link elsewhere":  # inside of the model it may lead anywhere
        harm = link_out(tmp_path)
    harm(path)
    check_refused(lambda: AdaptiveM3.from_pretrained(tmp_path / "model"), path, canary)


def link_out(outside):
    def harm(path):
        shutil.move(path, outside / "outside")
        path.symlink_to(outside / "outside")

    return harm


@pytest.mark.parametrize(("file", "name", "harm"), ALL_CASES, ids=ids(ALL_CASES))
def test_training_is_refused_even_if_its_record_agrees(trained, canary, tmp_path, file, name, harm):
    folder = shutil.copytree(trained, tmp_path / "predictor")
    harm(folder / file)
    record = unseal(json.loads((folder / "manifest.json").read_text()))
    try:
        record["files"] = digest_files(folder)
    except FolderError:
        record["files"] = {}
    (folder / "manifest.json").write_text(json.dumps(seal(record)))
    check_refused(lambda: load_trained(folder), folder / file, canary)


@pytest.mark.parametrize("name", BAD_RECORD)
def test_record_is_refused(trained, canary, tmp_path, name):
    folder = shutil.copytree(trained, tmp_path / "predictor")
    BAD_RECORD[name](folder / "manifest.json")
    check_refused(lambda: load_trained(folder), folder / "manifest.json", canary)


BAD_MODEL = {
    **BAD_JSON,
    "no scales": drop_key("scales"),
    "files in a list": set_key("files", value=[1]),
    "files elsewhere": set_key("files", value={"../../secret": "00"}),
    "other scales": set_key("scales", value=[1, 9, 144]),
    "no fingerprint of weights": drop_key("fingerprints", "weights"),
    "a path for a checkpoint": set_key("backbone_checkpoint", value="../../secrets"),
    "a root for a checkpoint": set_key("backbone_checkpoint", value="/etc"),
    "a number for a checkpoint": set_key("backbone_checkpoint", value=1),
    # transformers would fetch a kernel of this name and run it.
    "a kernel from the hub": set_key("backbone_arguments", "attn_implementation", value="someone/kernel"),
    "an argument too many": set_key("backbone_arguments", "device_map", value="auto"),
    "an argument too few": drop_key("backbone_arguments", "prompt"),
    "a batch of 0": set_key("backbone_arguments", "batch_size", value=0),
    "a billion new tokens": set_key("backbone_arguments", "max_new_tokens", value=10**9),
    "a dtype of the moon": set_key("backbone_arguments", "dtype", value="moon"),
    "scales of text": set_key("backbone_arguments", "scales", value=["a"]),
    "grids of text": set_key("backbone_arguments", "image_grid_pinpoints", value=[["a", "b"]]),
}


@pytest.mark.parametrize("name", BAD_MODEL)
def test_configuration_of_a_model_is_refused(trained, canary, tmp_path, name):
    shutil.copytree(trained, tmp_path / "model" / "predictor")
    path = tmp_path / "model" / CONFIG
    path.write_text(json.dumps(ADAPTIVE))
    BAD_MODEL[name](path)
    check_refused(lambda: AdaptiveM3.from_pretrained(tmp_path / "model"), path, canary)


BAD_BACKBONES = {
    "pickled": ("pytorch_model.bin", lambda path: path.write_bytes(b"\x80\x04")),
    "a link elsewhere": ("model.safetensors", lambda path: path.symlink_to("/etc/hostname")),
    "a kernel": (CONFIG, write(b'{"text_config": {"_attn_implementation": "someone/kernel"}}')),
    "no JSON": (CONFIG, write(b"{")),
}


@pytest.mark.parametrize("name", BAD_BACKBONES)
def test_packed_backbone_is_refused(trained, canary, tmp_path, name):
    model = tmp_path / "model"
    shutil.copytree(trained, model / "predictor")
    (model / CONFIG).write_text(json.dumps({**ADAPTIVE, "backbone_checkpoint": None}))
    (model / "backbone").mkdir()
    (model / "backbone" / CONFIG).write_text("{}")
    file, harm = BAD_BACKBONES[name]
    harm(model / "backbone" / file)
    check_refused(lambda: AdaptiveM3.from_pretrained(model), model / "backbone" / file, canary)


def test_what_nobody_touched_loads(trained, tmp_path):
    loaded = load_trained(trained)
    labels = make_labels(5, seed=3)
    estimates = ScalePredictor.load(trained).predict(labels.inputs)
    np.testing.assert_array_equal(loaded.predictor.predict(labels.inputs), estimates)
    assert isinstance(loaded.prices, PriceList) and isinstance(loaded.hybrid, Hybrid)
    # A folder that is itself a link is whatever the user has named.
    (tmp_path / "link").symlink_to(trained)
    assert ScalePredictor.load(tmp_path / "link").name == loaded.name


def test_what_is_trusted_is_imported_and_nothing_beside_it(trained, canary, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "predictor")
    set_key("arguments", "objective", value={"partial": BIRD})(folder / CONFIG)
    for others in ([], ["canary"], [f"{CANARY}.Birds"], "predictor"):
        with pytest.raises(FolderError, match=rf"built from {CANARY}\.Bird, which is not one of"):
            ScalePredictor.load(folder, trust=others)
    assert not canary.exists()
    for trust in ([CANARY], CANARY, [f"{CANARY}.Bird"]):
        # It is imported, and then it is no objective.
        with pytest.raises(FolderError, match="cannot be loaded, damaged or of another"):
            ScalePredictor.load(folder, trust=trust)
        assert canary.exists()


def test_snapshot_of_the_hub_is_made_of_links_to_its_blobs(trained, tmp_path):
    home = tmp_path / "models--someone--model"
    snapshot = home / "snapshots" / "0123" / "predictor"
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    for number, path in enumerate(sorted(trained.iterdir())):
        shutil.copy(path, home / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("../../../blobs") / str(number))
    assert ScalePredictor.load(snapshot).name == "learned"
    shutil.move(home / "blobs" / "0", tmp_path / "outside")
    (snapshot / CONFIG).unlink()
    (snapshot / CONFIG).symlink_to(tmp_path / "outside")
    with pytest.raises(FolderError, match="a link that leads out of the folder"):
        ScalePredictor.load(snapshot)


def spoil(name, change):
    def harm(content):
        content[f"trees.0.{name}"] = change(content[f"trees.0.{name}"])

    return harm


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("left", lambda left: np.where(left > 0, np.arange(len(left)), left)),  # its own child, for ever
        ("right", lambda right: np.where(right > 0, 0, right)),
        ("left", lambda left: np.where(left > 0, 10**6, left)),
        ("left", lambda left: left - 1),
        ("root", lambda root: root + 10**6),
        ("root", lambda root: root - 1),
        ("root", lambda root: root[:0]),
        ("column", lambda column: column + 10**6),
        ("value", lambda value: value[:-1]),
        ("value", lambda value: np.full_like(value, np.inf)),
        ("column", lambda column: column.astype(np.float64)),
    ],
)
def test_trees_that_lead_nowhere_are_refused(canary, tmp_path, name, change):
    fit_trees().save(tmp_path)
    harm = arrays(spoil(name, lambda array: change(array).astype(change(array).dtype)))
    harm(tmp_path / WEIGHTS)
    check_refused(lambda: ScalePredictor.load(tmp_path), tmp_path / WEIGHTS, canary)


@functools.cache
def fit_trees():
    return GradientBoosting(max_trees=10).fit(make_labels(30, 0), make_labels(10, 1))


def test_what_does_not_load_is_not_saved(tmp_path):
    predictor = fit_trees()
    fingerprints = predictor.fingerprints
    try:
        predictor.fingerprints = {"weights": "aa"}
        with pytest.raises(ValueError, match="without a fingerprint of data, prompt, decoding"):
            predictor.save(tmp_path)
    finally:
        predictor.fingerprints = fingerprints
    spoilt = GradientBoosting(max_trees=2).fit(make_labels(30, 0), make_labels(10, 1))
    spoilt._trees[0] = spoilt._trees[0]._replace(value=spoilt._trees[0].value * np.nan)
    with pytest.raises(ValueError, match=r"trees\.0\.value contains nan"):
        spoilt.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_prices_that_are_saved_load(tmp_path):
    labels = make_labels(30, 0)
    estimates = np.random.default_rng(0).uniform(size=labels.outcomes.score.shape)
    prices = PriceList.from_calibration(estimates, labels.inputs.visual_tokens, labels.outcomes.score)
    prices = replace(prices, named={"guarantee": prices.points[0]})
    prices.save(tmp_path)
    assert PriceList.load(tmp_path) == prices
