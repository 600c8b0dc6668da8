"""Renamed modules: folders and configurations that name a class by its former module still load."""

from typing import Any

# Former module -> module.
MODULES = {
    "experiments.scorers": "experiments.tasks.scoring",
    "m3_backbone.llava": "m3_backbone.llava.backbone",
    "m3_backbone.random_llava": "m3_backbone.llava.random_llava",
    "predictor.baselines": "predictor.classical.baselines",
    "predictor.blend": "predictor.classical.blend",
    "predictor.boosting": "predictor.classical.boosting",
    "predictor.cascade": "predictor.cascades.cascade",
    "predictor.controls": "predictor.classical.controls",
    "predictor.hybrid": "predictor.cascades.hybrid",
    "predictor.nearest": "predictor.classical.nearest",
    "predictor.objectives.scores": "predictor.objectives.base",
    "predictor.question_only": "predictor.classical.question_only",
}


def find_name(name: str) -> str:
    """Return today's dotted name of a class; names of other modules are returned as they are."""
    module, _, rest = name.rpartition(".")
    if module in MODULES:
        return f"{MODULES[module]}.{rest}"
    # `Hybrid.fit`: a method of a class of the module.
    outer, _, kind = module.rpartition(".")
    return f"{MODULES[outer]}.{kind}.{rest}" if outer in MODULES and kind[0].isupper() else name


def rename_classes(value: Any) -> Any:
    """Return the JSON of a predictor in which every text under "class" is today's name of a class."""
    if isinstance(value, list):
        return [rename_classes(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: find_name(item) if name == "class" and isinstance(item, str) else rename_classes(item)
        for name, item in value.items()
    }
