"""The command `serve`: its configuration, a published folder, and a process that is stopped."""

import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from hydra import compose, initialize_config_dir

from experiments.command_line.script import find_config_dir
from experiments.serve import main
from experiments.serving.configured import make_service, open_socket, read_key
from experiments.serving.limits import Limits
from experiments.serving.local import LocalService
from experiments.serving.metrics import ServerMetrics
from experiments.serving.proxy import ProxyService
from experiments.settings.check import check_settings
from tests.experiments.serving.conftest import COUNT, ask, draw_picture, to_url
from tests.paths import ROOT


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    model.save_pretrained(folder)
    return folder


def read_config(*overrides):
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        return compose("serve", list(overrides))


def test_a_published_folder_is_served_here_or_in_front_of_an_engine(folder):
    config = check_settings("serve", read_config(f"folder={folder}", "point=guarantee"))
    service = make_service(config, Limits(**config.limits), ServerMetrics())
    assert isinstance(service, LocalService) and service.default.given() == {
        "point": "guarantee",
        "escalate": False,
    }
    assert Limits(**config.limits) == Limits()  # the defaults of code and configuration agree
    config = read_config(f"folder={folder}", "upstream=http://127.0.0.1:9/v1", "adapter=image_embeds")
    assert isinstance(make_service(config, Limits(), ServerMetrics()), ProxyService)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["port=70000"], "port=70000: give a whole number from 0 to 65535"),
        (
            ["upstream=localhost:8001"],
            "upstream=localhost:8001: give the URL of an engine without credentials",
        ),
        (["upstream=http://me:secret@host/"], "give the URL of an engine without credentials"),
        (["allow_remote_images=true"], "allow_remote_images=true, remote_hosts=[]: give both or neither"),
        (["remote_hosts=[a.example]"], "remote_hosts=[a.example]: give both or neither"),
        (["limits.pixels=0"], "limits.pixels=0: give a whole number from 1 up"),
        (
            ["+adapter.dtype=1"],
            "ImageArguments has no such argument",
        ),
        (["folder={folder}", "scale=7"], "scale 7 is not on the ladder of this backbone"),
        (["folder={folder}", "point=nowhere"], "no operating point 'nowhere' was saved"),
        (["folder={folder}", "escalate=true"], "no hybrid was saved with this predictor"),
        (["folder={folder}", "upstream=http://127.0.0.1:9"], "give adapter=image_embeds, for M3 on vLLM"),
        (["folder=/nowhere"], "no folder /nowhere"),
    ],
)
def test_what_cannot_be_served_is_one_line(folder, capsys, overrides, message):
    given = [override.replace("{folder}", str(folder)) for override in overrides]
    given = given if any("port" in text for text in given) else [*given, "port=0"]
    with pytest.raises(SystemExit) as end:
        main(read_config(*given))
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port={port}: Address already in use"):
            open_socket("127.0.0.1", port)
    with pytest.raises(ValueError, match=r"cannot listen at host=no\.such\.host\.invalid"):
        open_socket("no.such.host.invalid", 0)


def test_connections_send_small_pieces_at_once():
    with open_socket("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_open_server_without_a_key_warns(monkeypatch, caplog):
    monkeypatch.delenv("TOKENSCALE_API_KEY", raising=False)
    assert read_key("127.0.0.1") is None and not caplog.records
    assert read_key("0.0.0.0") is None and "everybody who reaches this machine" in caplog.text
    monkeypatch.setenv("TOKENSCALE_API_KEY", "sk-secret")
    assert read_key("0.0.0.0") == "sk-secret" and "sk-secret" not in caplog.text


@pytest.mark.long
def test_a_process_serves_until_it_is_interrupted(folder, model):
    arguments = [sys.executable, "-m", "experiments.serve", f"folder={folder}", "port=0"]
    environment = {**os.environ, "TOKENSCALE_API_KEY": "sk-secret", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.search(r"serving at (http://127\.0\.0\.1:\d+)/v1", line)
        assert address, line + process.stdout.read()
        with httpx.Client(headers={"authorization": "Bearer sk-secret"}, timeout=60) as client:
            picture = draw_picture()
            response = client.post(f"{address[1]}/v1/chat/completions", json=ask(COUNT, to_url(picture)))
        assert response.json()["choices"][0]["message"]["content"] == model.answer(picture, COUNT).text
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert (rest, process.returncode) == ("stopped\n", 0)
