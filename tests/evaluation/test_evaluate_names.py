"""The evaluation names classes as the model does where the labels have no table."""

import torch

import worlds
from das3.cli import main
from das3.models import load_segmenter, save_segmenter


def test_classes_of_labels_without_a_table_have_the_models_names(tmp_path, capsys):
    worlds.write_world(tmp_path / "world", "target", count=2)
    (tmp_path / "world/classes.json").unlink()
    torch.manual_seed(0)
    model = load_segmenter("das3:small", num_classes=3, model_args={"width": 8}, class_names=["air", "lane", "bin"])
    given = ["--model", save_segmenter(model, tmp_path / "model"), "--device", "cpu", "--quiet"]
    given += ["--images", tmp_path / "world/images", "--labels", tmp_path / "world/labels"]
    assert main(["evaluate", *map(str, given)]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == ["air", "lane", "bin", "mIoU"]
