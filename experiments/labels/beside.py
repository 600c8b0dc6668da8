"""Label folders of other backbones on the same data, beside a label folder."""

from pathlib import Path

from m3_backbone.outcomes.manifest import read_manifest


def find_labels_of(backbone: str, labels: Path, setting: str, way_out: str) -> Path:
    """Return the folder with the labels of another backbone for the task of the folder `labels`.

    Raises ValueError, which names `setting` and ends with `way_out`, if there are none, or if they are of
    other data.
    """
    own = read_manifest(labels)
    folder = labels.parent.parent / backbone / labels.name
    try:
        manifest = read_manifest(folder)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{setting}: there are no labels of it in {folder}: run "
            f"`tokenscale label backbone={backbone} task={own['task']}`, {way_out}"
        ) from error
    if manifest["fingerprints"]["data"] != own["fingerprints"]["data"]:
        raise ValueError(
            f"{setting}: the labels in {folder} are of other data than {labels}: label both with the same "
            "settings of the task"
        )
    return folder
