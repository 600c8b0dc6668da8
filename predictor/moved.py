"""Former names of modules and classes, for saved folders and configurations that name a class by them."""

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
# Former name of a class -> name.
CLASSES = {
    "m3_backbone.llava.resized.ResizedLlavaBackbone": "m3_backbone.llava.downsampled.DownsampledLlavaBackbone"
}


def find_name(name: str) -> str:
    """Return the present dotted name of a class; other names are returned unchanged."""
    if name in CLASSES:
        return CLASSES[name]
    module, _, rest = name.rpartition(".")
    if module in MODULES:
        return f"{MODULES[module]}.{rest}"
    # A method of a class, such as `Hybrid.fit`.
    outer, _, class_name = module.rpartition(".")
    is_method = outer in MODULES and class_name[0].isupper()
    return f"{MODULES[outer]}.{class_name}.{rest}" if is_method else name


def rename_classes(value: Any) -> Any:
    """Return the JSON of a predictor with present class names in place of former ones under "class"."""
    if isinstance(value, list):
        return [rename_classes(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: find_name(item) if name == "class" and isinstance(item, str) else rename_classes(item)
        for name, item in value.items()
    }
