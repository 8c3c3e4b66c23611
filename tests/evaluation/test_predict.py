"""Prediction against plain torch, tiles against the whole, files against what Pillow reads."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import das3.evaluation.predict
from das3.data.class_table import ClassTable
from das3.data.published.classes import CITYSCAPES, subset
from das3.data.visualize import palette
from das3.errors import DataError, ModelError, RecipeError
from das3.evaluation.predict import predict_batch, predict_labels, predict_probs
from das3.evaluation.prediction_files import file_values, predict_to_file, write_prediction
from das3.segmenter import Preprocess, Segmenter


class Net(nn.Module):
    """Convolutions that see few pixels around, with a batch norm; logits at 1/stride of the input."""

    def __init__(self, classes: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, stride, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.classifier = nn.Conv2d(6, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def segmenter(net: nn.Module | None = None, *, align_corners: bool = False, size: object = None) -> Segmenter:
    torch.manual_seed(0)
    net = net or Net()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=1.0)
    return Segmenter(net.eval(), preprocess=Preprocess(size=size), align_corners=align_corners)  # type: ignore[arg-type]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def expected(model: Segmenter, image: np.ndarray, shape: tuple[int, int], *, mirrored: bool = False) -> Tensor:
    """Resize, network, upsample, softmax; written down plainly."""
    small = np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.BILINEAR))
    pixels = torch.tensor(small / 255, dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = model.model(model.preprocess(pixels.flip(-1) if mirrored else pixels))
        logits = logits.flip(-1) if mirrored else logits
        for size in (shape, image.shape[:2]):
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=model.align_corners)
    return logits.double().softmax(dim=1)[0]


# --- whole images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "shape"), [(None, (48, 72)), (24, (24, 36)), ((40, 33), (40, 33)), (96, (96, 144))])
def test_probabilities_are_the_softmax_of_upsampled_logits(
    size: object, shape: tuple[int, int], align_corners: bool
) -> None:
    model, image = segmenter(Net(stride=4), align_corners=align_corners), picture(48, 72)
    probs = predict_probs(model, image, size=size)  # type: ignore[arg-type]
    assert probs.shape == (3, 48, 72)
    assert probs.dtype == torch.float32
    assert not probs.requires_grad
    torch.testing.assert_close(probs.double(), expected(model, image, shape), atol=1e-5, rtol=0)
    torch.testing.assert_close(probs.sum(dim=0), torch.ones(48, 72))


def test_the_models_own_size_is_the_default() -> None:
    image = picture(48, 72)
    torch.testing.assert_close(
        predict_probs(segmenter(size=24), image), predict_probs(segmenter(), image, size=24), atol=0, rtol=0
    )


def test_flip_and_scales_are_means_of_their_views() -> None:
    model, image = segmenter(Net(stride=2)), picture(32, 48)
    views = [expected(model, image, s, mirrored=m) for s in ((16, 24), (48, 72)) for m in (False, True)]
    probs = predict_probs(model, image, flip=True, scales=(0.5, 1.5))
    torch.testing.assert_close(probs.double(), sum(views) / 4, atol=1e-5, rtol=0)


def test_with_flip_a_mirrored_image_gives_the_mirrored_prediction() -> None:
    model, image = segmenter(), picture(32, 48)
    probs = predict_probs(model, image, flip=True)
    mirrored = predict_probs(model, image[:, ::-1], flip=True)
    torch.testing.assert_close(mirrored.flip(-1), probs)


def test_labels_are_the_most_probable_classes() -> None:
    model, image = segmenter(), picture(32, 48)
    labels = predict_labels(model, image, flip=True)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, predict_probs(model, image, flip=True).argmax(dim=0).numpy())


def test_a_batch_is_its_images() -> None:
    model, images = segmenter(size=24), [picture(32, 48, seed) for seed in range(3)]
    batch = predict_batch(model, images, flip=True)
    assert batch.shape == (3, 3, 32, 48)
    for one, image in zip(batch, images, strict=True):
        torch.testing.assert_close(one, predict_probs(model, image, flip=True))
    with pytest.raises(ValueError, match="one size"):
        predict_batch(model, [picture(32, 48), picture(48, 32)])


def test_large_outputs_are_made_in_bands_that_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = segmenter(Net(stride=4), align_corners=True), picture(90, 70)
    whole = predict_probs(model, image, size=32)
    monkeypatch.setattr(das3.evaluation.predict, "_VALUES", 3 * 70 * 7)
    torch.testing.assert_close(predict_probs(model, image, size=32), whole)
    np.testing.assert_array_equal(predict_labels(model, image, size=32), whole.argmax(dim=0).numpy())


def test_it_predicts_in_evaluation_mode_and_puts_every_layers_mode_back() -> None:
    model, image = segmenter(), picture(32, 48)
    calm = predict_probs(model, image)
    model.train()
    model.model.features[1].eval()  # a frozen norm layer in a network that trains
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    torch.testing.assert_close(predict_probs(model, image), calm, atol=0, rtol=0)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Remembering(Net):
    """Keeps a position table from its first call, as several transformers do."""

    table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.linspace(1, 2, x.shape[-1])
        return super().forward(x * self.table)


def test_a_network_that_keeps_tensors_can_be_trained_after_a_prediction() -> None:
    model = segmenter(Remembering())
    model.model.table = None
    predict_labels(model, picture(64, 64))
    model(torch.rand(1, 3, 64, 64).requires_grad_()).sum().backward()


def test_probabilities_can_be_trained_on() -> None:
    model, image = segmenter(), picture(32, 32)
    soft = predict_probs(model, image)
    soft += 0
    F.cross_entropy(model(torch.rand(1, 3, 32, 32)), soft[None]).backward()


# --- tiles -------------------------------------------------------------------------------------------------------


class Strided(nn.Module):
    """Down by 8 and up again: sees few pixels around, and differs with the grid on which it is laid."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 8, 8)
        self.up = nn.ConvTranspose2d(8, 8, 8, 8)
        self.classifier = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.up(torch.relu(self.down(x))))


@pytest.mark.parametrize("net", [Net, Strided])
@pytest.mark.parametrize(("height", "width"), [(136, 200), (64, 65), (97, 64), (300, 40), (131, 391)])
@pytest.mark.parametrize("overlap", [0.5, 0.25])
def test_tiles_are_the_whole_where_the_network_sees_little(
    net: type[nn.Module], height: int, width: int, overlap: float
) -> None:
    model, image = segmenter(net()), picture(height // 8 * 8, width // 8 * 8)
    whole = predict_probs(model, image, tile=1000)
    tiled = predict_probs(model, image, tile=64, overlap=overlap)
    torch.testing.assert_close(tiled, whole, atol=2e-5, rtol=0)


def test_tiles_are_zoomed_as_the_whole_is() -> None:
    model, image = segmenter(), picture(256, 512)
    image = np.asarray(Image.fromarray(image).resize((64, 32)).resize((512, 256)))  # smooth: resizing loses little
    whole, tiled = (predict_probs(model, image, size=128, tile=tile) for tile in (512, 128))
    assert (tiled - whole).abs().mean() < 0.01
    assert (tiled - whole).abs().max() < 0.2


@given(st.integers(1, 700), st.sampled_from([64, 96, 128]), st.floats(0, 0.5))
@settings(max_examples=200)
def test_tiles_cover_a_side_and_every_pixel_has_a_weight(length: int, tile: int, overlap: float) -> None:
    spans = das3.evaluation.predict._spans(length, tile, overlap)
    total, reached = torch.zeros(length), 0
    for start, stop, after, weights in spans:
        assert start % 32 == 0
        assert start == reached
        assert start < after <= stop
        assert len(weights) == stop - start < tile + 32
        total[start:stop] += weights
        reached = after
    assert reached == length
    assert (total > 0).all()


def record_inputs(model: Segmenter) -> list[tuple[int, ...]]:
    """Sizes of what the network is fed from now on."""
    seen: list[tuple[int, ...]] = []
    model.model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    return seen


def test_only_large_images_are_tiled_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    model = segmenter()
    seen = record_inputs(model)
    monkeypatch.setattr(das3.evaluation.predict, "WHOLE_PIXELS", 128 * 128)
    monkeypatch.setattr(das3.evaluation.predict, "TILE", 64)
    predict_labels(model, picture(128, 128))
    assert seen == [(128, 128)]
    seen.clear()
    predict_labels(model, picture(128, 130))
    assert len(seen) > 1
    assert max(max(shape) for shape in seen) < 96
    seen.clear()
    predict_labels(model, picture(512, 512), size=128)  # large, but not for the network
    assert seen == [(128, 128)]
    seen.clear()
    predict_labels(model, picture(512, 512), size=256)
    assert len(seen) > 1
    assert max(max(shape) for shape in seen) < 96
    seen.clear()
    predict_labels(model, picture(100, 100), scales=(1.0, 2.0))
    assert len(seen) > 2


def test_many_classes_are_refused_where_a_byte_would_not_do() -> None:
    model = segmenter(Net(classes=257))
    assert predict_probs(model, picture(16, 16)).shape == (257, 16, 16)
    with pytest.raises(ModelError, match="257"):
        predict_labels(model, picture(16, 16))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tile": 32}, "--tile must be 64"),
        ({"tile": 64, "overlap": 0.6}, "overlap"),
        ({"scales": ()}, "--scales"),
        ({"scales": (1.0, 0.0)}, "--scales"),
    ],
)
def test_options_that_can_not_work_are_refused(options: dict, match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        predict_labels(segmenter(), picture(80, 80), **options)


# --- files -------------------------------------------------------------------------------------------------------


def test_a_file_is_predicted_as_its_pixels_are(tmp_path: Path) -> None:
    model, image = segmenter(), picture(80, 130)
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(predict_labels(model, tmp_path / "a.png"), predict_labels(model, image))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("tile", [None, 64])
def test_predicting_into_a_file(tmp_path: Path, suffix: str, tile: int | None) -> None:
    model, image = segmenter(), picture(150, 210)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(image).save(path)
    out = predict_to_file(model, path, tmp_path / "deep/out.png", tile=tile, values=(7, 8, 11))
    expected_labels = predict_labels(model, image, tile=tile)
    np.testing.assert_array_equal(np.asarray(Image.open(out)), np.array([7, 8, 11])[expected_labels])
    assert [p.name for p in out.parent.iterdir()] == ["out.png"]


def test_a_prediction_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.tif"):
        predict_to_file(segmenter(), tmp_path / "nowhere.tif", tmp_path / "out" / "a.png")
    with pytest.raises(RecipeError):
        predict_to_file(segmenter(), picture(80, 80), tmp_path / "out" / "a.png", tile=10)
    assert not list(tmp_path.rglob("*a.png*"))


def test_what_a_prediction_is_written_as(tmp_path: Path) -> None:
    model, image, colors = segmenter(), picture(20, 30), palette(3)
    probs = predict_probs(model, image)
    labels = predict_labels(model, image)
    path = write_prediction(tmp_path, "town/a", labels, values=(7, 8, 11), colors=colors, image=image, probs=probs)
    assert path == tmp_path / "labels/town/a.png"
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.array([7, 8, 11])[labels])
    with Image.open(tmp_path / "colors/town/a.png") as picture_of_ids:
        np.testing.assert_array_equal(np.asarray(picture_of_ids), labels)
        np.testing.assert_array_equal(np.asarray(picture_of_ids.convert("RGB")), colors[labels])
    blended = np.asarray(Image.open(tmp_path / "overlays/town/a.png")).astype(int)
    assert blended.shape == image.shape
    assert (abs(blended - image) <= abs(colors[labels].astype(int) - image) + 1).all()
    with np.load(tmp_path / "probs/town/a.npz") as file:
        np.testing.assert_allclose(file["probs"], probs.numpy(), atol=1e-3)


def test_only_labels_are_written_unless_more_is_asked_for(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [1, 0]], np.uint8)
    write_prediction(tmp_path, "a", labels)
    write_prediction(tmp_path, "mask", labels, values=(0, 255))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "labels/a.png")), labels)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "labels/mask.png")), labels * 255)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*")) == [
        "labels/a.png",
        "labels/mask.png",
    ]


def test_cityscapes_predictions_are_written_in_the_servers_ids() -> None:
    helpers = pytest.importorskip("cityscapesscripts.helpers.labels")
    values = file_values(CITYSCAPES)
    assert values == tuple(helpers.trainId2label[c].id for c in range(19))
    assert file_values(subset(CITYSCAPES, 16)) == tuple(v for c, v in enumerate(values) if c not in (9, 14, 16))
    assert file_values(ClassTable(("a", "b"))) == (0, 1)
    assert file_values(ClassTable(("a", "b"), ids={9: 0, 4: 0, 0: 1})) == (4, 0)
    with pytest.raises(DataError, match="no id for b"):
        file_values(ClassTable(("a", "b"), ids={9: 0}))
