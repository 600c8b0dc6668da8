"""A small random checkpoint in MQT-LLaVA's layout: a reference checkpoint with learned queries."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from m3_backbone.llava.queries import QueryTransformer
from tests.paths import FIXTURES

GROUPED = FIXTURES / "reference_m3" / "grouped_query_bin"
PREFIX = "model.query_abstractor."


def write_query_checkpoint(folder: Path, source: Path = GROUPED, **config: Any) -> Path:
    """Write `folder`/checkpoint and the tower `folder`/clip; `config` changes config.json, None deletes."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("image*", "expected*"))
    checkpoint = folder / "checkpoint"
    weights: dict[str, torch.Tensor] = {}
    for file in sorted([*checkpoint.glob("*.bin"), *checkpoint.glob("*.safetensors")]):
        weights |= load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
        file.unlink()
    for file in checkpoint.glob("*.index.json"):
        file.unlink()
    settings = json.loads((checkpoint / "config.json").read_text())
    torch.manual_seed(0)
    queries = QueryTransformer(settings["mm_hidden_size"], settings["hidden_size"]).state_dict()
    queries |= {name: torch.randn_like(weight) for name, weight in queries.items() if name != "proj"}
    weights = {name: weight for name, weight in weights.items() if "mm_projector" not in name}
    weights |= {PREFIX + name: weight for name, weight in queries.items()}
    weights[f"{PREFIX}pos_embed"] = weights[f"{PREFIX}pos_embed"].half().float()
    # As the authors' training writes it; the type of a projector that does not exist included.
    settings |= {
        "query_abstractor_type": "matry_query",
        "mm_projector_type": "linear",
        "num_visual_tokens": "second_stage",
        "matryoshka_vis_token_scale": None,
        **config,
    }
    settings = {key: value for key, value in settings.items() if value is not None}
    (checkpoint / "config.json").write_text(json.dumps(settings))
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return checkpoint
