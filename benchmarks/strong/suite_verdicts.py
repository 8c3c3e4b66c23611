"""What the guard would hand back of the suites' runs, which are measured stage by stage, without it.

    das3 benchmark --suite streets --out OUT/streets --methods das3 --seeds 3
    python benchmarks/strong/suite_verdicts.py OUT streets,camvid-dusk,camvid-idd 0,1,2 --data DATA

Adds to results/suites.json a row per suite and seed: mIoU of the source model, of each stage and of the oracle, the
candidate that the guard chooses, and the gap that this one closes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from das3.benchmark.suite_file import find_suite
from das3.ema import copy_weights
from das3.models import load_segmenter
from das3.selection.bn_statistics import choose_bn_statistics, sample_batches
from das3.selection.candidates import State, Verdict, choose, measure_candidates
from das3.stages.context import StageContext
from das3.training.checkpoints import load_checkpoint
from das3.training.loop import make_fabric

FILE = Path(__file__).parent / "results" / "suites.json"


def verdict(run: Path, source: Path, suite: Any) -> Verdict:
    """The guard's choice among the source model, the chosen statistics and the weights after each stage."""
    segmenter = load_segmenter(source).eval()
    images = suite.target().images
    with tempfile.TemporaryDirectory() as folder:
        size = segmenter.preprocess.size
        context = StageContext(
            make_fabric("cpu", "32"), segmenter, images.resized(size), Path(folder), (0, 0), (64, 64), 8
        )
        states = [State("incoming", "incoming", partial(dict, copy_weights(segmenter)))]
        batches = sample_batches(context)
        statistics = choose_bn_statistics(context, batches)
        if statistics.target_weight:
            states.append(State("statistics", "statistics", partial(dict, copy_weights(segmenter))))
        for file in sorted((run / "checkpoints").glob("[0-9]*-*.pt")):
            states.append(State(file.stem.partition("-")[2], "stage", partial(_weights, file)))
        candidates = measure_candidates(segmenter, states, batches, segmenter.class_names)
    return choose(candidates, len(images), statistics_tried=bool(statistics.source))


def _weights(file: Path) -> Mapping[str, Tensor]:
    return load_checkpoint(file)["segmenter"]  # type: ignore[no-any-return]


def row_of(out: Path, name: str, seed: int, data: Path | None) -> dict[str, Any]:
    """mIoU and gap closed in percent."""
    folder = out / name / str(seed)
    found = {kind: json.loads((folder / f"{kind}.json").read_text())["rows"] for kind in ("source", "oracle", "das3")}
    reached = {row["stage"]: row["miou"] for rows in found.values() for row in rows}
    chosen = verdict(folder / "das3", folder / "source", find_suite(name, data)).chosen
    miou = reached["source" if chosen == "incoming" else chosen]
    gap = 100 * (miou - reached["source"]) / (reached["oracle"] - reached["source"])
    return {"suite": name, "seed": seed, **{stage: round(m, 2) for stage, m in reached.items()}, "chosen": chosen} | {
        "miou": round(miou, 2),
        "gap_closed": round(gap, 1),
        "commit": found["das3"][-1].get("commit"),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("suites")
    parser.add_argument("seeds")
    parser.add_argument("--data", type=Path, default=None)
    given = parser.parse_args()
    rows = json.loads(FILE.read_text()) if FILE.exists() else []
    for name in given.suites.split(","):
        for seed in map(int, given.seeds.split(",")):
            row = row_of(given.out, name, seed, None if name.startswith("streets") else given.data)
            print(json.dumps(row), flush=True)
            rows = [*(r for r in rows if (r["suite"], r["seed"]) != (name, seed)), row]
    FILE.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
