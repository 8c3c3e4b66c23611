"""Hub ids, against a server on this machine that answers as the hub's API does; the disk comes before the hub."""

import contextlib
import io
import json
import os
import subprocess
import sys

import pytest
import torch
from hub_server import serve
from networks import hf_segformer, of_das3

import worlds
from das3.cli import main
from das3.models import is_hub_id, save_segmenter

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    hf_segformer().save_pretrained(root / "someone/segformer")
    (root / "someone/segformer/evil.py").write_text("raise SystemExit('code of the hub ran')")
    evil = save_segmenter(of_das3("small", width=8)(), root / "someone/evil")
    card = json.loads((evil / "das3.json").read_text())
    (evil / "das3.json").write_text(
        json.dumps({**card, "model": "os:system", "model_args": {"command": "touch owned"}})
    )
    with serve(root, "someone/segformer", "someone/evil") as server:
        yield server


def given(model, out):
    return ["predict", "--model", model, "--images", "world/images", "--out", out, "--device", "cpu", "--quiet"]


def predict(folder, hub, models):
    """Per model: exit status, what stands on stderr, and what the hub was asked for; all in this process."""
    constants, here, found = huggingface_hub.constants, f"http://127.0.0.1:{hub.server_port}", {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.delenv("HF_TOKEN", raising=False)
        # What the client read from the environment when it was imported.
        patch.setattr(constants, "ENDPOINT", here)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{here}/{{repo_id}}/resolve/{{revision}}/{{filename}}")
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache/hub"))
        for name, value in (("HF_HUB_DISABLE_XET", True), ("HF_HUB_OFFLINE", False)):
            patch.setattr(constants, name, value)
        for number, model in enumerate(models):
            hub.asked.clear()
            huggingface_hub.utils.disable_progress_bars()  # which loading a model turns on again
            with contextlib.redirect_stderr(io.StringIO()) as error, contextlib.redirect_stdout(io.StringIO()):
                status = main(given(model, f"out{number}"))
            found[model] = (status, error.getvalue(), list(hub.asked))
    return found


FETCHED = "someone/segformer"
ON_DISK = {
    "we/ok.pt": "--weights",
    "we/model": "no such folder",
    "runs/model.pt": "no such folder",
    "./runs": "no such",
}


@pytest.fixture(scope="module")
def cases(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    worlds.write_world(folder / "world", "target", count=1)
    (folder / "we").mkdir()
    torch.save({"a": torch.zeros(1)}, folder / "we/ok.pt")
    models = [FETCHED, "someone/nothing", "someone/evil", *ON_DISK]
    return folder, predict(folder, hub, models)


def one_line(case, *words):
    status, error, _ = case
    assert status == 2, error
    assert error.count("\n") == 1, error
    for word in words:
        assert word in error, error


def test_a_hub_id_is_fetched_and_used(cases):
    folder, online = cases
    status, error, asked = online[FETCHED]
    assert status == 0, error
    assert (folder / "out0/labels/0.png").exists()
    assert any(path.endswith("model.safetensors") for path in asked)
    assert not any(path.endswith(".py") for path in asked)  # code is not even fetched


@pytest.mark.slow
def test_what_was_fetched_is_kept(cases, hub):
    """As a command, which finds the hub and the cache by the environment."""
    folder, _ = cases
    hub.asked.clear()
    env = {**os.environ, "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "5"}
    env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HOME": str(folder / "other")}
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"):
        env.pop(name, None)
    # The second time nobody is there.
    for number, endpoint in enumerate((f"http://127.0.0.1:{hub.server_port}", "http://127.0.0.1:9")):
        command = [sys.executable, "-m", "das3", *given(FETCHED, f"again{number}")]
        done = subprocess.run(
            command, cwd=folder, env={**env, "HF_ENDPOINT": endpoint}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert bool(hub.asked) == (number == 0)
        hub.asked.clear()


def test_errors_of_the_hub_are_one_line(cases):
    folder, online = cases
    one_line(online["someone/nothing"], "someone/nothing", "no such folder here, and not on the Hugging Face hub")
    assert online["someone/nothing"][2]
    one_line(online["someone/evil"], "someone/evil", "os:system", "--trust")
    assert not (folder / "owned").exists()


def test_what_is_or_was_to_be_on_the_disk_never_reaches_the_hub(cases):
    for model, word in ON_DISK.items():
        one_line(cases[1][model], model, word)
        assert cases[1][model][2] == [], model


def test_hub_ids_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("nvidia/segformer-b0-finetuned-ade-512-512", "facebook/mask2former-v1.5", "a_b/C.d-e"):
        assert is_hub_id(name), name
    paths = ["runs/night", "./a/b", "../a", "/a/b", "a/b/c", "model", "a/b.pt", "a/b.safetensors", "a/b.onnx", "~/m"]
    for path in [*paths, "a/", "a\\b", "a/.hidden", "-a/b", "das3:small"]:
        assert not is_hub_id(path), path
