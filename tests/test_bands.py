"""Networks of 1, 4 and N channels, and images of any depth, through the commands: adapt, resume, predict, evaluate."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import tifffile
import torch
import yaml
from PIL import Image
from torch import nn

import das3
import worlds
from das3.cli import main
from das3.cli.arguments import prepare
from das3.cli.command import command_parser
from das3.data.open import open_images, open_labelled
from das3.data.pixels import as_rgb8
from das3.data.samples import Augmentation
from das3.data.value_ranges import read_rule
from das3.errors import DataError, ModelError, RecipeError
from das3.evaluation.evaluate import evaluate
from das3.evaluation.predict import predict_labels
from das3.input_transforms import COLOR_TRANSFORMS, InputTransform
from das3.models import load_segmenter, save_segmenter
from das3.recipe import load_recipe, recipe_from, recipe_of
from das3.report.capture import Capture
from das3.report.findings import compare_captures
from das3.segmenter import Preprocess, Segmenter
from das3.stages.labelling import labels_of_data, of_each

STAGES = ("align", "selftrain", "propagate")
STEPS = {stage: {"steps": 2} for stage in STAGES}
PLAIN = {**STEPS, "selftrain": {"steps": 2, "color_transforms": False, "upscale": False}}
QUICK = [*(f"--{stage}.steps=2" for stage in STAGES), "--batch-size=2", "--device=cpu", "--quiet", "--workers=0"]

RNG = np.random.default_rng(0)


def network(channels: int) -> nn.Module:
    torch.manual_seed(0)
    body = (nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1))
    return nn.Sequential(*body)


def saved(folder: Path, channels: int) -> Path:
    torch.manual_seed(0)
    args = {"width": 8, "in_channels": channels}
    return save_segmenter(load_segmenter("das3:small", num_classes=3, model_args=args), folder)


def write_world(folder: Path, channels: int, dtype: str = "uint16", top: float = 4000, **options: object) -> Path:
    """Images of many bands and labels: a bright box before a dark ground, each band in its own strength."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    (folder / "classes.json").write_text(json.dumps({"classes": ["ground", "box", "sky"]}))
    for i in range(3):
        label = np.zeros((48, 64), np.uint8)
        label[:8] = 2
        label[10 + 4 * i : 30 + 4 * i, 10:40] = 1
        strength = np.linspace(1, 0.3, channels)
        values = (np.array([0.1, 0.5, 0.8])[label][..., None] + RNG.normal(0, 0.05, (48, 64, channels))) * strength
        values = (values.clip(0, 1) * top).astype(dtype)
        given = {"photometric": "minisblack", "planarconfig": "contig", **options} if channels > 1 else options
        tifffile.imwrite(folder / "images" / f"{i}.tif", values if channels > 1 else values[..., 0], **given)
        Image.fromarray(label).save(folder / "labels" / f"{i}.png")
    return folder


def adapted(model: Path, world: Path, out: Path, *more: str) -> dict:
    given = ["--model", str(model), "--images", str(world / "images"), "--out", str(out), "--report=false"]
    assert main(["adapt", *given, *QUICK, *more]) == 0
    return json.loads((out / "model" / "das3.json").read_text())


@pytest.mark.parametrize(
    ("channels", "dtype", "top", "low", "high"),
    [(1, "uint16", 4000, 0, 4095), (4, "uint8", 255, 0, 255), (10, "float32", 0.99, 0, 1)],
)
def test_all_stages_with_a_network_of_other_channels(
    tmp_path: Path, channels: int, dtype: str, top: float, low: float, high: float
) -> None:
    world, model = write_world(tmp_path / "world", channels, dtype, top), saved(tmp_path / "model", channels)
    labelled = ("--eval-images", str(world / "images"), "--eval-labels", str(world / "labels"))
    card = adapted(model, world, tmp_path / "run", *labelled, "--guard=off")  # which may keep the incoming model
    assert card["in_channels"] == channels
    assert len(card["preprocess"]["mean"]) == channels
    assert (card["pixels"]["low"], card["pixels"]["high"], card["pixels"]["channels"]) == ([low], [high], channels)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert [row["name"] for row in summary["stages"]] == ["source", *STAGES]
    assert all(0 <= row["miou"] <= 100 for row in summary["stages"])
    before, after = load_segmenter(model), load_segmenter(tmp_path / "run")
    assert after.in_channels == channels
    assert any(not torch.equal(v, after.model.state_dict()[k]) for k, v in before.model.state_dict().items())


def test_predict_and_evaluate_read_images_as_the_model_was_adapted_to(tmp_path: Path, capsys) -> None:
    """A single dim image is not taken for a bright one."""
    world, model = write_world(tmp_path / "world", 4), saved(tmp_path / "model", 4)
    adapted(model, world, tmp_path / "run", "--stages=align")
    dim = write_world(tmp_path / "dim", 4, top=200)
    predict = ["predict", "--model", str(tmp_path / "run"), "--device=cpu"]
    assert main([*predict, "--images", str(dim / "images"), "--out", str(tmp_path / "out"), "--overlays=true"]) == 0
    assert "values from 0 to 4095" in capsys.readouterr().err
    segmenter = load_segmenter(tmp_path / "run")
    images = open_images(dim / "images").fitted(4, pixel_range=[0, 4095])
    for i, name in enumerate(images.names):
        expected = predict_labels(segmenter, images[i])
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"out/labels/{name}.png")), expected)
        np.testing.assert_array_equal(predict_labels(segmenter, dim / "images" / f"{name}.tif"), expected)
        np.testing.assert_array_equal(predict_labels(segmenter, dim / "images" / f"{name}.tif", tile=64), expected)
        assert np.asarray(Image.open(tmp_path / f"out/overlays/{name}.png"))[:48].shape == (48, 64, 3)
    evaluate = ["evaluate", "--model", str(tmp_path / "run"), "--labels", str(dim / "labels"), "--device=cpu"]
    assert main([*evaluate, "--images", str(dim / "images")]) == 0
    assert "values from 0 to 4095" in capsys.readouterr().err
    assert main([*evaluate, "--images", str(dim / "images"), "--pixel-range=auto"]) == 0
    assert "values from 0 to 255" in capsys.readouterr().err


def test_a_resumed_run_reads_images_as_before(tmp_path: Path) -> None:
    world, model = write_world(tmp_path / "world", 4), saved(tmp_path / "model", 4)
    whole = das3.adapt(model, world / "images", out=tmp_path / "whole", quiet=True, device="cpu", batch_size=2,
                       **PLAIN)  # fmt: skip
    part = tmp_path / "part"
    (part / "checkpoints").mkdir(parents=True)
    recipe = yaml.safe_load((tmp_path / "whole/recipe.yaml").read_text())
    (part / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "out": str(part)}))
    (part / "checkpoints/0-align.pt").write_bytes((tmp_path / "whole/checkpoints/0-align.pt").read_bytes())
    rows = whole.metrics["stages"][:2]
    torch.save({"phase": 1, "step": 0, "rows": rows, "labels": None, "seconds": 0.0}, part / "checkpoints/last.pt")
    again = das3.adapt(recipe={**recipe, "out": str(part)}, resume=True, quiet=True)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key
    assert again.segmenter.pixels == whole.segmenter.pixels


def test_an_smp_network_of_four_channels_goes_back_to_smp(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = smp.Unet("resnet18", encoder_weights=None, in_channels=4, classes=3, decoder_channels=(16, 8, 8, 4, 4))
    net.save_pretrained(tmp_path / "model")
    world = write_world(tmp_path / "world", 4)
    adapted(tmp_path / "model", world, tmp_path / "run", "--stages=align", "--guard=off")
    back = smp.from_pretrained(tmp_path / "run/model").eval()
    ours = load_segmenter(tmp_path / "run")
    batch = torch.rand(1, 4, 64, 64)
    torch.testing.assert_close(ours(batch), back(ours.preprocess(batch)))


def test_the_report_shows_rgb_bands_and_leaves_out_what_has_no_data(tmp_path: Path) -> None:
    world, model = write_world(tmp_path / "world", 4), saved(tmp_path / "model", 4)
    for path in (world / "images").iterdir():
        values = tifffile.imread(path)
        values[:, 40:] = 0
        tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig")
    run = tmp_path / "run"
    options = ("--report=true", "--rgb-bands=4,3,2", "--nodata=0", "--pixel-range=0,4095")
    adapted(model, world, run, "--stages=align", *options)
    assert (run / "report.html").is_file()
    segmenter = load_segmenter(run)
    before, after = (Capture(run / "work/report" / kind) for kind in ("incoming", "adapted"))
    images = open_images(world / "images").fitted(4, recorded=segmenter.pixels)
    for i in range(len(images)):
        image, valid = images.masked(i)
        assert valid is not None
        assert (after[i]["labels"] == np.where(valid, predict_labels(segmenter, image), 255)).all()
        assert before[i]["histogram"].sum() == after[i]["histogram"].sum() == valid.sum()
        photo = np.asarray(Image.open(io.BytesIO(after.photo(i)))).astype(float)
        assert np.abs(photo - as_rgb8(image, (3, 2, 1))).mean() < 10  # JPEG
    assert compare_captures(before, after).matrix.sum() == sum(int(images.masked(i)[1].sum()) for i in range(3))
    kept = [{k: v.tolist() for k, v in after[i].items()} for i in range(3)]
    shutil.rmtree(run / "work/report")
    assert main(["report", str(run), "--quiet"]) == 0
    again = Capture(run / "work/report/adapted")
    assert [{k: v.tolist() for k, v in again[i].items()} for i in range(3)] == kept


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_a_network_object_of_any_number_of_channels(channels: int) -> None:
    images = [(RNG.integers(0, 4096, (32, 40, channels)).astype(np.uint16), "no label") for _ in range(3)]
    quick = {"quiet": True, "device": "cpu", **PLAIN}
    result = das3.adapt(network(channels), images, **quick)  # type: ignore[arg-type]
    assert result.segmenter.in_channels == channels
    assert result.model(torch.rand(1, channels, 16, 16)).shape == (1, 3, 8, 8)


def test_bands_options_reach_the_network_and_its_colours(tmp_path: Path) -> None:
    world, model = write_world(tmp_path / "world", 6), saved(tmp_path / "model", 4)
    options = ("--stages=selftrain", "--bands=6,2,3,4", "--rgb-bands=4,3,2", "--pixel-range=0,8000", "--nodata=0")
    card = adapted(model, world, tmp_path / "run", *options)
    assert card["pixels"] | {"fill": None} == {
        "channels": 4, "dtype": "uint16", "low": [0], "high": [8000], "bands": [6, 2, 3, 4], "nodata": 0, "fill": None,
    }  # fmt: skip
    assert card["preprocess"]["rgb"] == [3, 2, 1]
    assert load_segmenter(tmp_path / "run").preprocess.rgb_bands == (3, 2, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bands=1,2"], "names 2 bands, but the network takes 4"),
        (["--rgb-bands=1,2"], "--rgb-bands names red, green and blue"),
        (["--bands=1,2,3,4", "--rgb-bands=1,2,6"], "does not see band 6"),
        (["--pixel-range=9,1"], "--pixel-range 9.0,1.0: give auto, dtype, two values"),
        (["--mean=0.5,0.5,0.5", "--std=1,1,1"], "takes 4 channels, but there are 3 means"),
        (["--in-channels=3"], "can't be run on a batch of one image of 3 channels"),
    ],
)
def test_options_that_do_not_fit_are_one_line(tmp_path: Path, capsys, options: list[str], message: str) -> None:
    world, model = write_world(tmp_path / "world", 6), saved(tmp_path / "model", 4)
    given = ["adapt", "--model", str(model), "--images", str(world / "images"), "--out", str(tmp_path / "run")]
    assert main([*given, *QUICK, *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not (tmp_path / "run").exists()


def test_deep_rgb_with_no_data_through_a_usual_network(tmp_path: Path) -> None:
    """A third of each image has no data: no label there, none counted, 255 in the label files."""
    world, model = write_world(tmp_path / "world", 3, "float32", 3000, photometric="rgb"), saved(tmp_path / "model", 3)
    for path in (world / "images").iterdir():
        values = tifffile.imread(path)
        values[:, 40:] = -9999
        tifffile.imwrite(path, values, photometric="rgb", extratags=[(42113, 2, 0, "-9999", True)])
    options = {
        "stages": ["align", "selftrain"],
        "align": {"steps": 2},
        "selftrain": {**PLAIN["selftrain"], "negative_threshold": 0.4},
    }
    result = das3.adapt(model, world / "images", out=tmp_path / "run", quiet=True, device="cpu", **options)
    assert result.segmenter.pixels is not None
    assert result.segmenter.pixels.high[0] == pytest.approx(3000, rel=0.1)
    assert result.pseudo_labels is not None
    for one in result.pseudo_labels:
        assert (one["labels"][:, 40:] == 255).all()
        assert (one["labels"][:, :40] != 255).any()
        assert not one["negatives"][..., 40:].any()
        assert one["negatives"][..., :40].any()
    assert main(["predict", "--model", str(tmp_path / "run"), "--images", str(world / "images"), "--out",
                 str(tmp_path / "out"), "--device=cpu", "--quiet"]) == 0  # fmt: skip
    labels = np.asarray(Image.open(tmp_path / "out/labels/0.png"))
    assert (labels[:, 40:] == 255).all()
    assert (labels[:, :40] < 3).all()


def test_predictions_where_there_is_no_data_do_not_count() -> None:
    """Means and shares are those of valid pixels, be the others as they may."""
    probs = torch.rand(3, 6, 8).softmax(dim=0)
    valid = torch.zeros(6, 8, dtype=torch.bool)
    valid[:, :4] = True
    changed = probs.clone()
    changed[:, ~valid] = torch.tensor([1.0, 0, 0])[:, None]

    def label(shown: torch.Tensor) -> dict[str, torch.Tensor]:
        labels = shown.argmax(dim=0).to(torch.uint8)
        return {"mean": shown.mean(dim=(1, 2)), "labels": labels, "bits": torch.ones(2, 6, 8, dtype=torch.uint8)}

    found, other = (labels_of_data(of_each(label), p[None], valid) for p in (probs, changed))
    found, other = ({key: value[0] for key, value in one.items()} for one in (found, other))
    torch.testing.assert_close(found["mean"], probs[:, valid].mean(dim=1))
    for key in found:
        assert torch.equal(found[key], other[key])
    assert (found["labels"][~valid] == 255).all()
    assert torch.equal(found["labels"][valid], probs.argmax(dim=0)[valid].to(torch.uint8))
    assert torch.equal(found["bits"].bool(), valid.expand(2, 6, 8))


def test_samples_do_not_count_what_has_no_data() -> None:
    image = RNG.random((20, 30, 4)).astype(np.float32)
    valid = np.ones((20, 30), bool)
    valid[:, 10:] = False
    maps = {"labels": np.zeros((20, 30), np.uint8), "negatives": np.full((1, 20, 30), 7, np.uint8)}
    sample = Augmentation((20, 30), flip=False)(image, maps, np.random.default_rng(0), valid)
    np.testing.assert_array_equal(sample["valid"].numpy(), valid)
    np.testing.assert_array_equal(sample["labels"].numpy() == 255, ~valid)
    np.testing.assert_array_equal(sample["negatives"][0].numpy() == 0, ~valid)
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), image)


def test_colours_change_in_the_rgb_bands_alone() -> None:
    image = RNG.random((20, 30, 5)).astype(np.float32)
    plain, colored = (Augmentation((20, 30), flip=False, color=color, rgb=(3, 2, 1)) for color in (0.0, 0.9))
    before, after = (view(image, {}, np.random.default_rng(1))["image"] for view in (plain, colored))
    assert torch.equal(before[[0, 4]], after[[0, 4]])
    assert not torch.isclose(before[1:4], after[1:4]).all()
    alone = Augmentation((20, 30), flip=False, color=0.9)(image[..., [3, 2, 1]], {}, np.random.default_rng(1))["image"]
    torch.testing.assert_close(after[[3, 2, 1]], alone)


@pytest.mark.parametrize("color_transform", COLOR_TRANSFORMS)
def test_color_transforms_change_the_rgb_bands_alone(color_transform: str) -> None:
    images = torch.rand(2, 5, 8, 8)
    changes = {"color_transforms": (color_transform,), "illumination": torch.full((1, 1, 8, 8), 0.5)}
    shown = InputTransform(**changes, rgb=(4, 0, 2))(images)
    assert torch.equal(shown[:, [1, 3]], images[:, [1, 3]])
    alone = InputTransform(**changes)(images[:, [4, 0, 2]])
    torch.testing.assert_close(shown[:, [4, 0, 2]], alone)


def test_channels_are_found_from_the_network_s_layers() -> None:
    for channels in (1, 2, 4, 13):
        segmenter = Segmenter(network(channels))
        assert segmenter.in_channels == channels
        assert len(segmenter.preprocess.mean) == channels
        assert segmenter.preprocess.channels == ("grey" if channels == 1 else "bands")
        assert segmenter(torch.rand(1, channels, 20, 20)).shape == (1, 3, 20, 20)
    given = Segmenter(network(4), preprocess=Preprocess((1, 2, 3, 4), (1, 1, 1, 2), input_max=10, channels="bands"))
    torch.testing.assert_close(given.preprocess(torch.ones(1, 4, 1, 1)).flatten(), torch.tensor([9.0, 8, 7, 3]))
    with pytest.raises(ModelError, match="4 channels, but there are 2 means"):
        Segmenter(network(4), preprocess=Preprocess((1, 2), (1, 1), channels="bands"))
    with pytest.raises(ModelError, match="RGB bands"):
        Preprocess((1, 2), (1, 1), channels="bands", rgb=(0, 1, 2))
    with pytest.raises(ModelError, match="needs 1 means"):
        Preprocess(channels="grey")


def test_a_source_model_is_trained_on_many_bands(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world", 4)
    folders = ["--images", str(world / "images"), "--labels", str(world / "labels"), "--out", str(tmp_path / "run")]
    options = ["--model=das3:small", "--model-args={'width': 8, 'in_channels': 4}", "--steps=2", "--batch-size=2"]
    assert main(["train-source", *folders, *options, "--device=cpu", "--quiet"]) == 0
    segmenter = load_segmenter(tmp_path / "run")
    assert segmenter.in_channels == 4
    assert segmenter.pixels is not None
    assert segmenter.pixels.high == (4095.0,)


def test_a_dry_run_with_many_bands(tmp_path: Path, capsys) -> None:
    world, model = write_world(tmp_path / "world", 4), saved(tmp_path / "model", 4)
    given = ["adapt", "--model", str(model), "--images", str(world / "images"), "--dry-run", "--device=cpu"]
    assert main([*given, "--stages=align"]) == 0
    assert "4 input channels" in capsys.readouterr().out


def test_too_few_bands_are_told_before_anything_is_written(tmp_path: Path) -> None:
    world = worlds.write_world(tmp_path / "world", "target", count=2)
    with pytest.raises(DataError, match="has 3 bands, but the network takes 5"):
        das3.adapt(network(5), world / "images", out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(RecipeError, match="pixel-range"):
        das3.adapt(network(3), world / "images", out=tmp_path / "run", quiet=True, pixel_range="dark")


def test_geotiff_in_geotiff_out(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    (tmp_path / "images").mkdir()
    place = rasterio.transform.from_origin(500000, 4600000, 10, 10)
    about = {"driver": "GTiff", "width": 70, "height": 50, "count": 4, "dtype": "uint16", "nodata": 0}
    values = RNG.integers(1, 4096, (4, 50, 70)).astype(np.uint16)
    values[:, :9] = 0
    with rasterio.open(tmp_path / "images/a.tif", "w", crs="EPSG:32633", transform=place, **about) as file:
        file.write(values)
    model = saved(tmp_path / "model", 4)
    predict = ["predict", "--model", str(model), "--images", str(tmp_path / "images"), "--out", str(tmp_path / "out")]
    for _ in range(2):
        assert main([*predict, "--device=cpu", "--quiet"]) == 0
        with rasterio.open(tmp_path / "out/labels/a.tif") as file:
            assert file.crs.to_epsg() == 32633
            assert file.transform == place
            assert (file.shape, file.count, file.dtypes, file.nodata) == ((50, 70), 1, ("uint8",), 255)
            labels = file.read(1)
        (tmp_path / "out/labels/a.tif").unlink()  # a killed run left the PNG alone
    np.testing.assert_array_equal(labels, np.asarray(Image.open(tmp_path / "out/labels/a.png")))
    assert (labels[:9] == 255).all()
    assert (labels[9:] < 3).all()


def test_pixels_without_data_are_not_measured(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world", 3, photometric="rgb")
    for path in (world / "images").iterdir():
        values = tifffile.imread(path)
        values[:, 40:] = 0
        tifffile.imwrite(path, values, photometric="rgb")
    labelled = open_labelled(world / "images", world / "labels")
    segmenter = Segmenter(network(3))
    whole = evaluate(segmenter, labelled)
    images = labelled.images.fitted(3, nodata=0)
    part = evaluate(segmenter, labelled.read_as(images))
    assert whole.confusion.counts.sum() == 3 * 48 * 64
    valid = sum(int(mask.sum()) for _, mask in (images.masked(i) for i in range(3)))  # type: ignore[union-attr]
    assert part.confusion.counts.sum() == valid <= 3 * 48 * 40


def test_the_former_name_of_input_max_is_read_in_old_recipe_files_and_refused_elsewhere(tmp_path: Path, capsys) -> None:
    (tmp_path / "old.yaml").write_text("value_range: 255\n")
    assert recipe_from(load_recipe(tmp_path / "old.yaml")).input_max == 255
    with pytest.raises(RecipeError, match="the option value_range is called input_max now"):
        das3.adapt(network(3), tmp_path, value_range=255)
    for command in ("adapt", "predict", "evaluate", "train-source"):
        assert main([command, "--value-range=255"]) == 2
        assert "--value-range is called --input-max now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--pixel-range", "-500,2000"], {"pixel_range": [-500.0, 2000.0]}),
        (["--pixel-range=percentile:1,99"], {"pixel_range": ["percentile:1", 99.0]}),
        (["--pixel-range", "dtype"], {"pixel_range": "dtype"}),
        (["--bands", "red,nir,3"], {"bands": ["red", "nir", 3]}),
        (["--bands=7"], {"bands": [7]}),
        (["--nodata", "-9999"], {"nodata": -9999.0}),
    ],
)
def test_options_are_read_from_the_command_line_and_again_from_the_recipe(given: list[str], kept: dict) -> None:
    parser, _ = command_parser("adapt")
    recipe = recipe_of(parser.parse_args(prepare(parser, given)))
    values = yaml.safe_load(recipe.to_yaml())
    assert {key: values[key] for key in kept} == kept
    assert recipe_from(values) == recipe
    if recipe.pixel_range is not None:
        read_rule(recipe.pixel_range)
