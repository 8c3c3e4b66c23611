"""`check_dataset` counts, finds what is wrong in a tree, and draws what it read."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from das3.data.check import check_dataset
from das3.data.published import DATASETS
from das3.errors import DataError
from data import trees

TREES: dict[str, Callable[[Path], None]] = {name: getattr(trees, name.replace("-", "_")) for name in DATASETS}


@pytest.mark.parametrize("name", sorted(TREES))
def test_every_dataset_can_be_checked(tmp_path: Path, name: str) -> None:
    TREES[name](tmp_path)
    report = check_dataset(name, tmp_path)
    assert report.splits
    wrong = [problem for split in report.splits for problem in split.problems if "were published" not in problem]
    assert wrong == []
    assert all(split.sizes == {"16×24": split.images} for split in report.splits)
    assert any(split.labels for split in report.splits)
    assert json.loads(json.dumps(report.to_dict()))["name"] == name


def test_counts_and_conditions(tmp_path: Path) -> None:
    trees.acdc(tmp_path)
    report = check_dataset("acdc", tmp_path, split="val")
    assert [(s.name, s.images, s.published, s.labels) for s in report.splits] == [
        ("val/fog", 1, 100, 1),
        ("val/night", 1, 106, 1),
        ("val/rain", 1, 100, 1),
        ("val/snow", 1, 100, 1),
    ]
    assert not report.ok
    assert "! val/night: 1 images where 106 were published" in report.text()
    assert [s.labels for s in check_dataset("acdc", tmp_path, split="test", condition="fog").splits] == [None]


def test_a_whole_dataset_is_ok(tmp_path: Path) -> None:
    trees.folders(tmp_path)
    report = check_dataset("folders", tmp_path)
    assert report.ok
    assert report.text().endswith("ok")
    shares = report.splits[0].classes
    assert sum(shares.values()) == pytest.approx(1)
    values = trees.pixels((0, 1, 2, 255))
    assert shares["car"] == pytest.approx((values == 1).sum() / (values != 255).sum())
    assert report.splits[0].absent == []


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    trees.cityscapes(tmp_path)
    labels = tmp_path / "gtFine/val/zurich"
    (labels / "zurich_000000_000019_gtFine_labelIds.png").unlink()
    trees.label(labels / "zurich_000001_000019_gtFine_labelIds.png", trees.pixels((7, 77, 78)))
    aachen = tmp_path / "gtFine/val/aachen/aachen_000000_000019_gtFine_labelIds.png"
    trees.label(aachen, trees.pixels(range(34))[:, :4])
    broken = tmp_path / "leftImg8bit/val/aachen/aachen_000001_000019_leftImg8bit.png"
    broken.write_bytes(b"")
    (val,) = check_dataset("cityscapes", tmp_path, split="val").splits
    assert (val.images, val.labels) == (4, 3)
    assert val.missing == ["gtFine/val/zurich/zurich_000000_000019_gtFine_labelIds.png"]
    assert val.unknown == {"77": 1, "78": 1}
    assert [str(aachen) in val.errors[0], str(broken) in val.errors[1], len(val.errors)] == [True, True, 2]
    assert len(val.problems) == 5


def test_splits_that_are_not_there(tmp_path: Path) -> None:
    trees.gta5(tmp_path)
    report = check_dataset("gta5", tmp_path)
    assert [split.name for split in report.splits] == ["all"]
    assert set(report.absent) == {"train", "val", "test"}
    assert "split.mat" in report.text()
    with pytest.raises(DataError, match="no images of split all"):
        check_dataset("synthia", tmp_path)
    with pytest.raises(DataError, match="split=dev"):
        check_dataset("gta5", tmp_path, split="dev")


def test_a_sample_is_read_and_all_is_counted(tmp_path: Path) -> None:
    trees.cityscapes(tmp_path)
    seen: list[int] = []

    def progress(items: object, what: str, total: int) -> list[int]:
        seen.append(total)
        return list(items)  # type: ignore[call-overload]

    report = check_dataset("cityscapes", tmp_path, sample=3, progress=progress)  # type: ignore[arg-type]
    assert [split.images for split in report.splits] == [4, 4, 4]
    assert [split.read for split in report.splits] == seen == [3, 3, 3]


def test_contact_sheet(tmp_path: Path) -> None:
    trees.camvid(tmp_path / "camvid")
    sheet = tmp_path / "new/sheet.png"
    report = check_dataset("camvid", tmp_path / "camvid", sheet)
    assert str(sheet) in report.text()
    drawn = np.asarray(Image.open(sheet))
    # Five rows, at most two images of 120×180 in each, and the same under their labels.
    assert drawn.shape[0] == 5 * (120 + 16 + 6) + 6
    assert drawn.shape[1] == 4 * (180 + 6) + 6
    row = drawn[142 + 22 : 142 + 22 + 120]  # train/dusk, which is one image
    photo, labelled, beyond = row[:, 6:186], row[:, 192:372], row[:, 380:]
    assert photo.std() > 20
    assert (labelled != photo).any()
    assert (beyond == 255).all()
    with pytest.raises(DataError, match=r"name it .*sheet\.png"):
        check_dataset("camvid", tmp_path / "camvid", tmp_path / "sheet.jpg")
