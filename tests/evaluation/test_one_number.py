"""A model has one mIoU: that of its run's summary is that of `das3 evaluate`, whatever the run's precision."""

import json

import torch

import worlds
from das3.cli.main import main
from das3.models import load_segmenter, save_segmenter


def test_a_run_in_bf16_and_das3_evaluate_say_the_same(tmp_path, capsys):
    target = worlds.write_world(tmp_path / "target", "target", count=4, size=(32, 48))
    torch.manual_seed(0)
    save_segmenter(load_segmenter("das3:small", num_classes=3, model_args={"width": 8}), tmp_path / "model")
    data = ["--images", str(target / "images")]
    labels = [str(target / "labels"), "--classes", str(target / "classes.json")]
    run = ["adapt", "--model", str(tmp_path / "model"), *data, "--eval-images", str(target / "images")]
    options = ["--stages", "bn", "--device", "cpu", "--precision", "bf16", "--quiet", "--guard=off"]
    options += ["--out", str(tmp_path / "run")]
    assert main([*run, "--eval-labels", *labels, *options]) == 0, capsys.readouterr().err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["stages"][-1]

    def measured(*extra):
        out = tmp_path / "evaluation.json"
        evaluate = ["evaluate", "--model", str(tmp_path / "run"), *data, "--labels", *labels, "--device", "cpu"]
        assert main([*evaluate, "--quiet", "--out", str(out), *extra]) == 0, capsys.readouterr().err
        return json.loads(out.read_text())

    found = measured()
    assert found["miou"] == summary["miou"]
    assert found["per_class_iou"] == summary["per_class_iou"]
    # Asked for, it is another precision, and on random weights another number.
    assert measured("--precision", "bf16")["per_class_iou"] != summary["per_class_iou"]
