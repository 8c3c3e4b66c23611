"""Two machines, simulated on one: a torchrun for each, which find each other by address and port."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

import worlds
from das3.api import adapt
from das3.models import load_segmenter, save_segmenter

OPTIONS = {"batch_size": 2, "device": "cpu", "report": False, "crop": [32, 32], "log_every": 1}
STAGES = {"stages": ["align", "selftrain"], "align": {"steps": 2}, "selftrain": {"steps": 2, "upscale": False}}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.slow
def test_two_nodes_end_with_the_weights_of_one_process(tmp_path):
    images = worlds.write_world(tmp_path / "target", "target", count=5, size=(32, 48)) / "images"
    torch.manual_seed(0)
    save_segmenter(load_segmenter("das3:small", num_classes=3, model_args={"width": 8}), tmp_path / "model")
    options = {**OPTIONS, **STAGES}
    adapt(tmp_path / "model", images, out=tmp_path / "one", quiet=True, **options)
    (tmp_path / "recipe.yaml").write_text(json.dumps(options))
    port = str(free_port())
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(rank)),
                *("--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port),
                *("-m", "das3", "adapt", "--recipe", str(tmp_path / "recipe.yaml"), "--quiet"),
                *("--model", str(tmp_path / "model"), "--images", str(images), "--out", str(tmp_path / "two")),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    for node in nodes:
        error = node.communicate(timeout=300)[1]
        assert node.returncode == 0, error[-3000:]
    one, two = (load_segmenter(tmp_path / name).model.state_dict() for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-5)
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 4
