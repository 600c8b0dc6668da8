"""What a wheel holds: everything that a clone runs with, the configuration tree included."""

import subprocess
import sys
import zipfile

import pytest
from hatchling.build import build_wheel

from tests.paths import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return zipfile.ZipFile(folder / build_wheel(str(folder)))


def test_wheel_holds_packages_data_and_configuration(wheel):
    files = [
        path.relative_to(ROOT).as_posix()
        for room in ("m3_backbone", "predictor", "experiments", "conf")
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    expected = {f"experiments/{name}" if name.startswith("conf/") else name for name in files}
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == expected


def test_unpacked_wheel_runs_with_its_own_configuration(wheel, tmp_path):
    wheel.extractall(tmp_path)
    command = [sys.executable, "-m", "experiments.run", "--info", "searchpath"]
    output = subprocess.check_output(command, cwd=tmp_path, text=True)
    assert str(tmp_path / "experiments" / "conf") in output
    assert str(ROOT) not in output
