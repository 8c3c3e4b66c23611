"""How fast das3 is beside bare loops of the same network: ratios, das3 ÷ bare, into results/speed-DEVICE.json.

    python benchmarks/speed.py                      # everything, on a GPU if there is one, else on the CPU
    python benchmarks/speed.py --only step/align    # rows whose name begins so, --only again for more; others stay
    python benchmarks/speed.py --check              # print only

Both sides of a ratio take turns, a few steps each, so that what else the machine does falls on both. On a GPU the
seconds of the clock are counted, on a CPU those of one thread; bare steps on a CPU have a process of their own, as das3
changes how its process asks for memory (das3.heap).

What is bare: a supervised step of the network, its inputs on the device (forward, upsampling to the image,
cross-entropy, backward, AdamW); inference is forward, upsampling and argmax. What is measured of das3: the real loop,
stages and samples.

Rows hold name, device, default (nothing but defaults is used, batch size and images being named), ratio (the median),
p10 and p90 of the ratios of the single blocks, and milliseconds of both sides.

    step/STAGE/NETWORK/FORM     ready: samples at hand; jpeg, png: from such files, decoded before or not, as it comes
    released/propagate/NETWORK  stage 3 beside a bare step with a teacher that labels its images at every step
    channels_last/NETWORK       a bare step in that memory format beside the usual one
    compile/NETWORK             a bare step through torch.compile, once it is compiled, beside the usual one
    memory/STAGE/NETWORK        bytes of a step at its peak, on a CPU what autograd keeps, with weights and optimiser
    heap/WORK/SIZE              a step, or predictions and their entropy, of the small network in a process that keeps
                                what it frees (das3.heap), beside a usual one
    heap-memory/WORK/SIZE       the most memory of the two processes
    sample/KIND                 a sample of 512×1024 on one core, its image at hand, beside decoding such a JPEG;
                                mixed: that two of them are mixed into one
    decoded/FORM/THREADS        an image file decoded by so many threads at once, beside Pillow; seconds of the clock
    waiting/FORM                how long another thread is kept from running Python by it, beside Pillow
    stored/WHAT                 labels of 512×1024 written or read, or their bytes, beside .npz files
    losses/NAME                 the stage's loss from logits, forward and backward, beside cross-entropy
    saved/NAME                  bytes that autograd keeps for it, beside cross-entropy
    labels/NETWORK/FORM         pass that makes stage 2's labels of whole images, beside inference
    parts/NETWORK/PART          a label pass by its parts, per image, beside inference
    views/NETWORK               a batch in other colours, as the choice of statistics sees it, beside inference
    prepare/STAGE/IMAGES        all that a stage does before its first step, beside its steps
    passes/STAGE/IMAGES         images that the network is shown before the first step, beside the number there are
    run/prepare/500             images that the choice of statistics and all stages of a run on 500 show before their
                                steps, beside all of the run, an image that is trained on counting as three
    run/guard/500               the same of the guard
    timed/prepare/NETWORK       seconds of the choice of statistics and all that stages do before their steps, beside
                                those of the whole run
    timed/guard/NETWORK         the same of all else but steps: opening, the guard, writing
    evaluate/NETWORK/FORM       images and their labels read, predicted and compared one by one, beside inference; on a
                                CPU a network that takes 0.1 s but no processor, by the clock
    predict/NETWORK/FORM        images read, predicted and their labels written, likewise
    checkpoint/NETWORK          writing one, beside the steps between two
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from speed_rows.bench import Bench, write_images
from speed_rows.heap import heap_rows
from speed_rows.inference import inference_rows
from speed_rows.parts import part_rows
from speed_rows.passes import checkpoint_rows, label_rows, pass_rows, prepare_rows, run_rows, timed_run_rows, view_rows
from speed_rows.samples import decoding_rows, loss_rows, sample_rows, storage_rows, waiting_rows
from speed_rows.steps import memory_rows, step_rows, variant_rows

FOLDER = Path(__file__).with_name("results")

ROWS = (
    *(label_rows, step_rows, memory_rows, variant_rows, heap_rows, sample_rows, decoding_rows, storage_rows, loss_rows),
    *(waiting_rows, part_rows, view_rows, prepare_rows, pass_rows, run_rows, timed_run_rows, checkpoint_rows),
    inference_rows,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--only", action="append", default=[], help="rows whose name begins so")
    parser.add_argument("--check", action="store_true", help="print only")
    given = parser.parse_args()
    bench = Bench(given.device, given.only, lambda row: None if given.check else write(row))
    if not bench.on_gpu:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="das3-speed-") as name:
        folder = Path(name)
        for form, size in bench.setting.sizes.items():
            write_images(folder / form, form, size, bench.setting.images)
        for measure in ROWS:
            measure(bench, folder)


def write(row: dict[str, Any]) -> None:
    """Other rows of the device's file stay as they are."""
    short = row["device"].lower().replace("nvidia ", "").replace(" ", "-")
    path = FOLDER / f"speed-{short}.json"
    found = {row["name"]: row for row in (json.loads(path.read_text()) if path.exists() else [])}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    found[row["name"]] = {**row, "commit": commit.stdout.strip()}
    path.write_text("[\n" + ",\n".join(json.dumps(found[name]) for name in sorted(found)) + "\n]\n")


if __name__ == "__main__":
    main()
