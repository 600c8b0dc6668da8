"""The folder of an adaptive model: `config.json`, `predictor/`, a card and perhaps `backbone/`.

The configuration names the class of the backbone and a checkpoint from the hub or from the package. A
checkpoint in a local folder is copied to `backbone/`, in safetensors. The fingerprints of the backbone are
saved in both cases and checked when the folder is opened.
"""

import importlib
import inspect
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, snapshot_download

from m3_backbone.backbone import Backbone
from m3_backbone.loading.weights import is_hub_id
from m3_backbone.model_backbone import ModelBackbone
from m3_backbone.outcomes.manifest import DIGEST, seal, unseal
from m3_backbone.reading import ATTENTIONS, find_kernels
from predictor import folder as predictor_folder
from predictor.base import ScalePredictor
from predictor.cascades.hybrid import HYBRID, Hybrid
from predictor.files import (
    FolderError,
    check_keys,
    check_place,
    damaged,
    digest_file,
    read_json,
    shorten,
    write_json,
)
from predictor.folder import CONFIG
from predictor.moved import find_name
from predictor.policy.pricing import PRICES, OperatingPoint, PriceList

# Classes of backbones that a folder may name, and their modules. No other class is imported for a folder.
BACKBONES = {
    "LlavaBackbone": "m3_backbone.llava.backbone",
    "DownsampledLlavaBackbone": "m3_backbone.llava.downsampled",
    "PrunedLlavaBackbone": "m3_backbone.llava.pruned",
    "QwenVLBackbone": "m3_backbone.native.qwen_vl",
    "Gemma4Backbone": "m3_backbone.native.gemma4",
    "TiledBackbone": "m3_backbone.native.tiles",
    "InternVLBackbone": "m3_backbone.native.internvl",
}
_LLAVA = "m3_backbone.llava.backbone.LlavaBackbone"  # the class in folders of earlier versions

FORMAT = 1
PREDICTOR, BACKBONE, CARD = "predictor", "backbone", "README.md"
_PATTERNS = [CONFIG, CARD, f"{PREDICTOR}/*", f"{BACKBONE}/*"]
_PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5"})
_KEYS = frozenset(
    {"library_name", "format", "backbone_checkpoint", "backbone_arguments", "fingerprints", "scales"}
)
_PREDICTOR_FILES = (CONFIG, predictor_folder.WEIGHTS, PRICES, HYBRID)
_BACKBONE_FINGERPRINTS = ("weights", "prompt", "decoding")
_HUB_ID = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?")
_TEXTS = ("name", "prompt")
_COUNTS = ("max_new_tokens", "batch_size", "image_batch_size")
_OPTIONAL = frozenset({"batch_tokens", "image_grid_pinpoints", "scales", "vision_dtype"})
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_MAX_COUNT = 100_000


def check_savable(backbone: Backbone, predictor: ScalePredictor) -> ModelBackbone:
    """Return the backbone.

    Raises ValueError if it could not be opened again, or not with this predictor.
    """
    target = type(backbone)
    if BACKBONES.get(target.__name__) != target.__module__ or not isinstance(backbone, ModelBackbone):
        raise ValueError(f"a {type(backbone).__name__} cannot be saved: only one from a checkpoint can")
    if backbone.attn_implementation not in ATTENTIONS:
        raise ValueError(
            f"a backbone with the attention {backbone.attn_implementation} cannot be saved: label and train "
            f"with one of {', '.join(filter(None, ATTENTIONS))}"
        )
    predictor.check_backbone(backbone.fingerprints)  # a backbone moved to another dtype could not be opened
    return backbone


def save(
    folder: Path,
    backbone: Backbone,
    predictor: ScalePredictor,
    prices: PriceList,
    hybrid: Hybrid | None = None,
) -> None:
    """Write all files except the card. Raises ValueError as in `check_savable`."""
    opened = check_savable(backbone, predictor)
    predictor.save(folder / PREDICTOR)
    prices.save(folder / PREDICTOR)
    # Files of an earlier save are removed.
    (folder / PREDICTOR / HYBRID).unlink(missing_ok=True)
    if hybrid is not None:
        hybrid.save(folder / PREDICTOR)
    (folder / CARD).unlink(missing_ok=True)
    source: str | None = opened.checkpoint.source
    if opened.checkpoint.is_local:
        opened.checkpoint.copy_to(folder / BACKBONE)
        source = None
    else:
        shutil.rmtree(folder / BACKBONE, ignore_errors=True)
    content = {
        "library_name": "tokenscale",
        "format": FORMAT,
        "backbone_class": predictor_folder.name_class(type(opened)),
        "backbone_checkpoint": source,
        "backbone_arguments": opened.saved_arguments(),
        "fingerprints": backbone.fingerprints,
        "scales": list(backbone.scales),
        "files": {
            path.relative_to(folder).as_posix(): digest_file(path)
            for path in sorted((folder / PREDICTOR).iterdir())
            if path.name in _PREDICTOR_FILES
        },
    }
    write_json(folder / CONFIG, seal(content))


def find_folder(source: str | Path, **download: Any) -> Path:
    """Return the local folder of an adaptive model, downloaded if `source` is a hub id.

    The hub is not contacted for a source that looks like a path. Raises OSError if there is no such model.
    """
    text, path = str(source), Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise FolderError(f"{text} is a file: give the folder that contains it")
    if not is_hub_id(source):
        raise FileNotFoundError(
            f"no folder {text}: give one that `tokenscale publish` wrote, or a hub id OWNER/NAME"
        )
    try:
        return Path(snapshot_download(text, allow_patterns=_PATTERNS, **download))
    except (OSError, ValueError) as error:
        raise OSError(
            f"{shorten(text, 100)} is not a local folder and cannot be fetched from the hub: {shorten(error)}"
        ) from error


def load_predictor(
    folder: Path, trust: Sequence[str] = ()
) -> tuple[ScalePredictor, PriceList, Hybrid | None]:
    """Load the predictor, its prices and its hybrid (None if none was saved).

    Raises FolderError for damaged files, and for classes that are neither our own nor in `trust`.
    """
    config = read_config(folder)  # read first, to reject other folders
    predictor_dir = folder / PREDICTOR
    predictor = ScalePredictor.load(predictor_dir, trust, root=folder)
    if list(predictor.scales or ()) != config["scales"]:
        raise damaged(folder / CONFIG, "its scales are not those of the predictor")
    hybrid = Hybrid.load(predictor_dir, root=folder)
    if hybrid is not None and hybrid.num_scales != len(config["scales"]):
        raise damaged(
            predictor_dir / HYBRID, f"fitted on {hybrid.num_scales} scales, not {len(config['scales'])}"
        )
    prices = PriceList.load(predictor_dir, root=folder)
    for name, digest in config.get("files", {}).items():
        if digest_file(folder / name, folder) != digest:
            raise damaged(folder / name, "not the file that was saved together with the others")
    return predictor, prices, hybrid


def open_backbone(
    folder: Path, backbone: Backbone | None, device: str | None = None, device_map: Any = None
) -> Backbone:
    """Return the given backbone, or open the saved one. Raises ValueError if its fingerprints differ."""
    config = read_config(folder)
    if backbone is None:
        checkpoint = config["backbone_checkpoint"]
        if checkpoint is None:
            _check_backbone_folder(folder)
            checkpoint = folder / BACKBONE
        backbone_class = _import_backbone(config["backbone_class"])
        arguments = config["backbone_arguments"]
        if unknown := sorted(arguments.keys() - _list_arguments(backbone_class)):
            raise damaged(folder / CONFIG, f"the backbone has no argument {shorten(', '.join(unknown))}")
        backbone = backbone_class(checkpoint, device=device, device_map=device_map, **arguments)
    elif device is not None or device_map is not None:
        raise ValueError("the given backbone is already open: leave out device and device_map")
    for key, saved in config["fingerprints"].items():
        if backbone.fingerprints.get(key) != saved:
            raise ValueError(
                f"{folder} was saved with a backbone whose {key} fingerprint is {saved}, but this one's is "
                f"{backbone.fingerprints.get(key)}: give the same checkpoint with the same settings"
            )
    return backbone


def _import_backbone(name: str) -> type[ModelBackbone]:
    """Return a class of `BACKBONES` by its dotted name, which `read_config` has checked."""
    module, _, class_name = name.rpartition(".")
    assert BACKBONES[class_name] == module
    target: type[ModelBackbone] = getattr(importlib.import_module(module), class_name)
    return target


def _list_arguments(backbone_class: type[ModelBackbone]) -> set[str]:
    """Return the names of a constructor's arguments, also of those that it passes on to its base class."""
    own = [vars(base)["__init__"] for base in backbone_class.__mro__[:-1] if "__init__" in vars(base)]
    parameters = [parameter for init in own for parameter in inspect.signature(init).parameters.values()]
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def _check_backbone_folder(folder: Path) -> None:
    """Raise FolderError for a backbone with pickles, links out of the folder or kernels from the hub."""
    backbone_dir = folder / BACKBONE
    for path in sorted(backbone_dir.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        check_place(path, folder)
        if path.suffix in _PICKLED:
            raise FolderError(f"{path} is pickled and is not read: save the weights as safetensors")
    config = backbone_dir / CONFIG
    content = read_json(config, folder)
    for problem in find_kernels(content if isinstance(content, dict) else {}):
        raise damaged(config, problem)


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check `config.json`. Raises FileNotFoundError if missing, FolderError if damaged."""
    path = folder / CONFIG
    if not path.exists() and not path.is_symlink():
        raise FileNotFoundError(f"no {CONFIG} in {folder}: is this the folder of an adaptive model?")
    content = read_json(path)
    if not isinstance(content, dict):
        raise damaged(path, "not a JSON object")
    if content.get("format") != FORMAT:
        saved = shorten(repr(content.get("format")), 40)
        raise FolderError(f"{path} has format {saved}, this version of tokenscale reads {FORMAT}")
    check_keys(path, content, _KEYS, frozenset({"backbone_class", "files", DIGEST}))
    try:
        content = unseal(content)
    except ValueError as error:
        raise damaged(path, error) from error
    names = {f"{PREDICTOR}/{name}" for name in _PREDICTOR_FILES}
    digests = content.get("files", {})
    if not isinstance(digests, dict) or not digests.keys() <= names:
        raise damaged(path, "the listed files are not those of a predictor")
    predictor_folder.check_scales(path, content["scales"])
    predictor_folder.check_fingerprints(path, content["fingerprints"], _BACKBONE_FINGERPRINTS)
    checkpoint = content["backbone_checkpoint"]
    if checkpoint is not None and not (isinstance(checkpoint, str) and _HUB_ID.fullmatch(checkpoint)):
        raise damaged(path, "backbone_checkpoint is not a hub id")
    backbone_class = content.get("backbone_class", _LLAVA)
    if isinstance(backbone_class, str):
        backbone_class = find_name(backbone_class)
    content["backbone_class"] = backbone_class
    if backbone_class not in [f"{module}.{name}" for name, module in BACKBONES.items()]:
        raise FolderError(
            f"{path} names the backbone {shorten(repr(backbone_class), 100)}, which is not one of "
            "tokenscale's own: give an open backbone"
        )
    _check_arguments(path, content["backbone_arguments"], is_llava=backbone_class == _LLAVA)
    return content


def _check_arguments(path: Path, arguments: Any, *, is_llava: bool) -> None:
    """Raise FolderError for backbone arguments that `save` would not write."""
    if is_llava:
        required = frozenset({*_TEXTS, *_COUNTS, "dtype", "attn_implementation"})
        check_keys(path, arguments, required, _OPTIONAL)
    elif not isinstance(arguments, dict):
        raise damaged(path, "the arguments of the backbone are not a JSON object")
    # `from_pretrained` gives these, and a folder must not.
    if given := sorted(arguments.keys() & {"checkpoint", "device", "device_map"}):
        raise damaged(path, f"the backbone has no argument {', '.join(given)}")
    for name in arguments.keys() & set(_TEXTS):
        if not isinstance(arguments[name], str) or not arguments[name]:
            raise damaged(path, f"{name} of the backbone is not a text")
    for name in arguments.keys() & {*_COUNTS, "batch_tokens"}:
        if type(arguments[name]) is not int or not 1 <= arguments[name] <= _MAX_COUNT:
            raise damaged(path, f"{name} of the backbone is not a whole number from 1 to {_MAX_COUNT}")
    # transformers would download and run any other attention name as a kernel from the hub.
    allowed_texts = {
        "attn_implementation": ATTENTIONS,
        "dtype": _DTYPES,
        "vision_dtype": (None, *_DTYPES[1:]),
    }
    for name, allowed in allowed_texts.items():
        value = arguments.get(name, allowed[0])
        if not (value is None or isinstance(value, str)) or value not in allowed:
            raise damaged(path, f"{name} of the backbone is not one of {', '.join(filter(None, allowed))}")
    for problem in find_kernels(arguments):  # in nested settings
        raise damaged(path, problem)
    if arguments.get("scales") is not None:
        predictor_folder.check_scales(path, arguments["scales"])
    sizes = [] if arguments.get("image_grid_pinpoints") is None else arguments["image_grid_pinpoints"]
    if not isinstance(sizes, list) or not all(
        isinstance(size, list)
        and len(size) == 2
        and all(type(n) is int and 0 < n <= _MAX_COUNT for n in size)
        for size in sizes
    ):
        raise damaged(path, "image_grid_pinpoints of the backbone are not pairs of pixel counts")


def write_card(
    backbone: Backbone, predictor: ScalePredictor, prices: PriceList, hybrid: Hybrid | None = None
) -> ModelCard:
    """Return the model card: parts, usage, and operating points on the calibration split."""
    fingerprints = predictor.fingerprints or {}
    rows = [("default", prices.default), *prices.named.items()]
    # About a dozen points of the front, by decreasing cost.
    step = max(1, len(prices.points) // 12)
    rows += [("", point) for point in prices.points[::step]]
    table = "\n".join(f"| {name} | {_format_point(point)} |" for name, point in rows)
    escalation = ""
    if hybrid is not None:
        tokens, score = hybrid.cost[hybrid.default], hybrid.score[hybrid.default]
        escalation = f"""
With `escalate=True`, a hybrid of predictor and cascade checks the confidence of each answer and retries at a
finer scale while that is worth it; costs include every scale tried. By default it uses {tokens:.1f} visual
tokens and scores {100 * score:.1f}%.
"""
    kind = "Matryoshka multimodal model" if backbone.family == "pooled" else "vision-language model"
    arguments = json.dumps(
        predictor_folder.describe(type(predictor), predictor.get_arguments()), indent=2, ensure_ascii=False
    )
    return ModelCard(
        f"""---
library_name: tokenscale
pipeline_tag: visual-question-answering
tags:
{"- matryoshka" if backbone.family == "pooled" else "- adaptive-resolution"}
- visual-tokens
- adaptive-computation
---

# {backbone.name} with {predictor.name}

A {kind} that answers each question with as many visual tokens as it needs: a light
predictor ({predictor.num_parameters:,} parameters) reads image and question and chooses among
{", ".join(map(str, backbone.scales))} visual tokens before the question is answered. The backbone,
`{backbone.name}`, is frozen.

```python
from predictor.adaptive.model import AdaptiveVLM

model = AdaptiveVLM.from_pretrained("PATH OR HUB ID")
(result,) = model.answer([image], ["what color is the sign?"])              # the default price
(result,) = model.answer([image], ["what color is the sign?"], budget=30)   # mean visual tokens
print(result.text, result.tried, result.cost, result.choice.estimates)
```

## Operating points

Mean visual tokens and mean score on the calibration split of the training task; they will differ on other
questions. The price is the cost of one answer at the finest scale, in units of score.

| | price | visual tokens | score |
| --- | ---: | ---: | ---: |
{table}
{escalation}
## How it was made

The backbone answered the training questions at every scale; the predictor was trained on these outcomes.
Fingerprints: {", ".join(f"{key} `{value}`" for key, value in sorted(fingerprints.items()))}. They are
checked when the model is loaded.

```json
{arguments}
```
"""
    )


def _format_point(point: OperatingPoint) -> str:
    return f"{point.price:.4f} | {point.cost:.1f} | {100 * point.score:.1f}%"
