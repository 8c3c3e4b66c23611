"""What Python code and notebooks get: functions, short results, tables, progress, help."""

import io
import pydoc
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import das3
import worlds
from das3.data.open import open_images, open_labelled
from das3.evaluation.evaluate import evaluate
from das3.evaluation.predict import predict_labels
from das3.training.progress import Display, NotebookBars
from test_api import QUICK, network


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return worlds.write_world(tmp_path_factory.mktemp("world"), "target", count=4)


@pytest.fixture(scope="module")
def result(world):
    """Of one stage, with labels to measure on."""
    labelled = open_labelled(world / "images", world / "labels")
    return das3.adapt(network(), world / "images", evaluation=labelled, **QUICK, stages=["align"])


def test_every_public_name_is_listed_and_is_there():
    assert set(das3.__all__) <= set(dir(das3))
    for name in das3.__all__:
        assert callable(getattr(das3, name)), name
        assert getattr(das3, name).__doc__


def test_predict_labels_what_the_model_predicts_and_changes_nothing(world):
    model = network().train()
    predictions = das3.predict(model, world / "images", device="cpu")
    expected = predict_labels(das3.load_segmenter(network()), open_images(world / "images")[1])
    assert predictions.names == ["0", "1", "2", "3"]
    assert len(predictions) == 4
    np.testing.assert_array_equal(predictions[1], expected)
    np.testing.assert_array_equal(predictions[-3], expected)
    assert [labels.shape for labels in predictions] == [(48, 64)] * 4
    assert all(np.array_equal(labels, predictions[i]) for i, labels in enumerate(predictions))
    assert model.training
    assert repr(predictions) == "Predictions(4 images, 3 classes)"


def test_predict_takes_the_options_of_the_model(world):
    plain = das3.predict(network(), world / "images", device="cpu")[0]
    shifted = das3.predict(network(), world / "images", device="cpu", mean=(0, 0, 0), std=(1, 1, 1))[0]
    assert (plain != shifted).any()
    with pytest.raises(das3.RecipeError, match="no option 'meam'; did you mean mean"):
        das3.predict(network(), world / "images", meam=(0, 0, 0))


def test_a_segmenter_keeps_how_its_own_images_are_read(world, tmp_path):
    segmenter = das3.load_segmenter(network())
    deep = [np.full((8, 8, 3), 4000, np.uint16)]
    assert das3.predict(segmenter, deep)[0].shape == (8, 8)
    assert segmenter.pixels is None


def test_evaluate_measures_as_the_run_does(world, result):
    evaluation = das3.evaluate(result.segmenter, world / "images", world / "labels")
    assert 100 * evaluation.miou == pytest.approx(result.metrics["miou"], abs=1e-3)
    labelled = open_labelled(world / "images", world / "labels")
    assert das3.evaluate(result.segmenter, labelled).miou == evaluate(result.segmenter, labelled).miou
    assert repr(evaluation) == f"Evaluation(mIoU {100 * evaluation.miou:.1f} % over 3 classes)"


def test_a_result_predicts(world, result):
    predictions = result.predict(world / "images", flip=True)
    expected = predict_labels(result.segmenter, open_images(world / "images")[0], flip=True)
    np.testing.assert_array_equal(predictions[0], expected)


def test_a_result_prints_in_one_line_and_shows_as_a_table(result):
    assert repr(result).startswith("Result(Sequential, mIoU ")
    assert len(repr(result)) < 200
    page = result._repr_html_()
    assert "<td>align</td>" in page
    assert str(result.folder) in page


def test_results_as_pandas(world, result):
    pytest.importorskip("pandas")
    table = result.table
    assert list(table.index) == ["source", "align"]
    assert {"mIoU", "IoU sky", "IoU road", "IoU box", "seconds"} == set(table.columns)
    evaluation = das3.evaluate(result.segmenter, world / "images", world / "labels", boundary=True)
    assert list(evaluation.table.columns) == ["IoU", "boundary IoU"]
    assert evaluation.table["IoU"].mean() == pytest.approx(100 * evaluation.miou)


def test_a_table_without_pandas_is_one_line(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(das3.Das3Error, match="pip install pandas"):
        _ = result.table


def test_a_data_loader_stands_for_its_dataset(world):
    images = torch.rand(5, 3, 8, 12)
    opened = open_images(DataLoader(TensorDataset(images), batch_size=2, shuffle=True))
    assert len(opened) == 5
    np.testing.assert_allclose(opened[3] / 255, images[3].permute(1, 2, 0), atol=1 / 255)


def test_what_can_not_be_images_is_refused_in_one_line():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(das3.DataError, match="DataLoader whose dataset is only iterable"):
        open_images(DataLoader(Stream()))
    with pytest.raises(das3.DataError, match=r"images=\[image\]"):
        open_images(np.zeros((8, 8, 3), np.uint8))


def test_train_source_takes_options(world, tmp_path):
    result = das3.train_source(
        images=world / "images",
        labels=world / "labels",
        out=tmp_path / "source",
        model_args={"width": 8},
        steps=2,
        batch_size=2,
        device="cpu",
        quiet=True,
    )
    assert result.segmenter.class_names == ("sky", "road", "box")
    assert (tmp_path / "source/model/model.safetensors").is_file()
    with pytest.raises(das3.RecipeError, match="did you mean steps"):
        das3.train_source(images=world / "images", stpes=2)
    with pytest.raises(das3.RecipeError, match="images"):
        das3.train_source(steps=2)


def test_help_lists_every_option():
    page = pydoc.plain(pydoc.render_doc(das3.adapt))
    recipe = das3.Recipe()
    plain = recipe.to_dict()
    options = [name for name, value in plain.items() if not isinstance(value, dict) and name != "format"]
    options += [name for stage in recipe.stages for name in plain[stage]]
    assert "ema_decay" in options
    assert "easy_share" in options
    assert [name for name in options if f" {name} (" not in page and f" {name}:" not in page] == []


def test_a_notebook_gets_a_bar_that_moves(monkeypatch):
    shown = []

    class Handle:
        def update(self, page):
            shown.append(page)

    def display(page, display_id):
        shown.append(page)
        return Handle()

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=display))
    with Display() as bars:
        bars.notebook = NotebookBars(interval=0)
        assert list(bars.track("abc", "a < b", 3)) == list("abc")
    assert 'value="0" max="3"' in shown[0]
    assert "a &lt; b 2/3" in shown[-2]
    assert shown[-1] == ""


def test_elsewhere_there_is_no_bar_of_a_notebook(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert Display().notebook is None
