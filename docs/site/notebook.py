"""Execute `docs/tutorial.ipynb` in place, on the labels and the predictor of `tokenscale run`.

`python -m docs.site.notebook` (`make notebook`) needs the extra `notebook`. Source cells are edited in the
file; outputs are never edited.
"""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    path = ROOT / "docs" / "tutorial.ipynb"
    os.environ.setdefault("TOKENSCALE_STORE", str(ROOT / "outputs" / "store"))
    notebook = nbformat.read(path, as_version=4)
    metadata = dict(notebook.metadata)
    with tempfile.TemporaryDirectory() as folder:  # the notebook saves a model where it runs
        client = NotebookClient(notebook, record_timing=False, coalesce_streams=True, timeout=600)
        client.execute(cwd=folder)
    notebook.metadata = metadata  # of the kernel's version, nothing
    nbformat.write(notebook, path)
    print(f"executed {path}")


if __name__ == "__main__":
    main()
