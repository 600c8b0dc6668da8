"""The folder of an adaptive model: `config.json`, `predictor/`, a card and, where it must be, `backbone/`.

A backbone that others can get, by hub id or with the package, is named in the configuration; one from a
folder of this machine goes along, in safetensors. Either way its fingerprints are written down, and a folder
is only opened on a backbone that has them.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from m3_backbone.backbone import Backbone
from m3_backbone.llava import LlavaBackbone
from predictor import folder as predictor_folder
from predictor.base import ScalePredictor
from predictor.folder import CONFIG, write_json
from predictor.hybrid import HYBRID, Hybrid
from predictor.pricing import OperatingPoint, PriceList

FORMAT = 1
PREDICTOR, BACKBONE, CARD = "predictor", "backbone", "README.md"
_OWN_PACKAGES = ("predictor", "m3_backbone")


def save(
    folder: Path,
    backbone: Backbone,
    predictor: ScalePredictor,
    prices: PriceList,
    hybrid: Hybrid | None = None,
) -> None:
    """Write all files but the card. Raises ValueError for a backbone that cannot be opened elsewhere."""
    if type(backbone) is not LlavaBackbone:
        raise ValueError(f"a {type(backbone).__name__} cannot be saved: only one from a checkpoint can")
    predictor.save(folder / PREDICTOR)
    prices.save(folder / PREDICTOR)
    # That of an earlier save would stay otherwise, as would the card.
    (folder / PREDICTOR / HYBRID).unlink(missing_ok=True)
    if hybrid is not None:
        hybrid.save(folder / PREDICTOR)
    (folder / CARD).unlink(missing_ok=True)
    source: str | None = backbone.checkpoint.source
    if backbone.checkpoint.is_local:
        backbone.checkpoint.copy_to(folder / BACKBONE)
        source = None
    else:
        shutil.rmtree(folder / BACKBONE, ignore_errors=True)
    content = {
        "library_name": "tokenscale",
        "format": FORMAT,
        "backbone_checkpoint": source,
        "backbone_arguments": _describe(backbone),
        "fingerprints": backbone.fingerprints,
        "scales": list(backbone.ladder),
    }
    write_json(folder / CONFIG, content)


def load_predictor(
    folder: Path, trust: Sequence[str] = ()
) -> tuple[ScalePredictor, PriceList, Hybrid | None]:
    """The predictor, its prices and its hybrid, if one was saved.

    A configuration from elsewhere may name what it likes: nothing is imported but from our own packages and
    those in `trust`. Raises ValueError, naming the class, where it asks for more.
    """
    read_config(folder)  # first whether it is such a folder at all
    home = folder / PREDICTOR
    description, _ = predictor_folder.read(home)
    allowed = (*_OWN_PACKAGES, *trust)
    for name in _find_classes(description):
        if name.split(".")[0] not in allowed:
            raise ValueError(
                f"the predictor in {folder} is built from {name}, which is not of {', '.join(allowed)}: "
                f"name its package in trust=[...] if you trust it"
            )
    return ScalePredictor.load(home), PriceList.load(home), Hybrid.load(home)


def open_backbone(folder: Path, backbone: Backbone | None, device: str | None) -> Backbone:
    """The backbone that the folder was saved with, opened if none is given; its fingerprints compared."""
    config = read_config(folder)
    if backbone is None:
        checkpoint = config["backbone_checkpoint"] or folder / BACKBONE
        backbone = LlavaBackbone(checkpoint, device=device, **config["backbone_arguments"])
    for key, saved in config["fingerprints"].items():
        if backbone.fingerprints[key] != saved:
            raise ValueError(
                f"{folder} was saved with a backbone whose {key} have the fingerprint {saved}, this one's "
                f"is {backbone.fingerprints[key]}: give the same checkpoint with the same settings"
            )
    return backbone


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`, or an error that says what is wrong with the folder."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no {CONFIG} in {folder}: is it the folder of an adaptive model?")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} is of format {content.get('format')}, this version reads {FORMAT}")
    return content


def write_card(
    backbone: Backbone, predictor: ScalePredictor, prices: PriceList, hybrid: Hybrid | None = None
) -> ModelCard:
    """The model card: what it is made of, how it is used, its operating points on the calibration split."""
    fingerprints = predictor.fingerprints or {}
    rows = [("default", prices.default), *prices.named.items()]
    # A dozen of the front's points, dear to cheap.
    step = max(1, len(prices.points) // 12)
    rows += [("", point) for point in prices.points[::step]]
    table = "\n".join(f"| {name} | {_format_point(point)} |" for name, point in rows)
    climb = ""
    if hybrid is not None:
        tokens, score = hybrid.cost[hybrid.default], hybrid.score[hybrid.default]
        climb = f"""
With `climb=True` a hybrid of predictor and cascade looks at its answer and may go on to finer scales; it pays
for every scale that it tries. By default it takes {tokens:.1f} visual tokens and scores {100 * score:.1f}%.
"""
    arguments = json.dumps(
        predictor_folder.describe(type(predictor), predictor.get_arguments()), indent=2, ensure_ascii=False
    )
    return ModelCard(
        f"""---
library_name: tokenscale
pipeline_tag: visual-question-answering
tags:
- matryoshka
- visual-tokens
- adaptive-computation
---

# {backbone.name} with {predictor.name}

A Matryoshka multimodal model that answers each question with as many visual tokens as it deserves: a light
predictor ({predictor.num_parameters:,} parameters) sees image and question and chooses among
{", ".join(map(str, backbone.ladder))} tokens before anything is answered. The backbone, `{backbone.name}`, is
frozen.

```python
from predictor.adaptive import AdaptiveM3

model = AdaptiveM3.from_pretrained("PATH OR HUB ID")
(result,) = model.answer([image], ["what color is the sign?"])              # the default price
(result,) = model.answer([image], ["what color is the sign?"], budget=30)   # mean visual tokens
print(result.text, result.tried, result.cost, result.choice.estimates)
```

## Operating points

Mean visual tokens and mean score on the calibration split of the task that it was trained for; on other
questions they will differ. The price is what one answer at the finest scale costs, in units of score.

| | price | visual tokens | score |
| --- | ---: | ---: | ---: |
{table}
{climb}
## How it was made

The backbone answered the training questions at every scale; the predictor learned from what was right.
Fingerprints: {", ".join(f"{key} `{value}`" for key, value in sorted(fingerprints.items()))}. They are
compared again when this is loaded.

```json
{arguments}
```
"""
    )


def _format_point(point: OperatingPoint) -> str:
    return f"{point.price:.4f} | {point.cost:.1f} | {100 * point.score:.1f}%"


def _describe(backbone: LlavaBackbone) -> dict[str, Any]:
    """The arguments with which the same backbone is opened again, its checkpoint apart."""
    names = ("name", "dtype", "attn_implementation", "max_new_tokens", "batch_size", "image_batch_size")
    arguments = {name: getattr(backbone, name) for name in names}
    resolutions = backbone.processor.images.resolutions
    tiles = {"image_grid_pinpoints": [list(size) for size in resolutions]} if resolutions else {}
    return arguments | {"prompt": backbone.processor.template.name} | tiles


def _find_classes(description: Any) -> Iterator[str]:
    if isinstance(description, dict):
        if isinstance(description.get("class"), str):
            yield description["class"]
        for value in description.values():
            yield from _find_classes(value)
    elif isinstance(description, list):
        for value in description:
            yield from _find_classes(value)
