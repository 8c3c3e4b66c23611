"""Hostile and odd images, labels, recipes, weights, model folders and numbers, each through the real command.

    python benchmarks/hostile                     # all of them, into benchmarks/results/hostile.json
    python benchmarks/hostile --only labels       # those whose kind or name has this in it; writes nothing

A case does well if it ends within 60 s and 3 GiB without a traceback, runs no code of the input's, asks nothing of the
network, and either works, or ends with one line that names the file or option and a status that is not 0.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path

import torch

sys.path[0] = str(Path(__file__).parents[1])

from hostile.cases import KINDS, all_cases  # noqa: E402
from hostile.run import MEMORY, SECONDS, run_cases  # noqa: E402

OUT = Path(__file__).parents[1] / "results" / "hostile.json"


def main() -> int:
    """Run, print what did not go well, and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose kind/name has one of these in it")
    parser.add_argument("--keep", type=Path, help="leave the cases' folders here")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--show", action="store_true", help="print what every case says")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases = [case for case in all_cases() if any(o in f"{case.kind}/{case.name}" for o in given.only)]
    counts = {kind: Counter() for kind in KINDS}
    longest = 0.0
    for outcome in run_cases(cases, seconds=given.seconds, keep=given.keep):
        case, verdict = outcome.case, outcome.verdict
        counts[case.kind]["well" if verdict == "well" else verdict.split(":")[0]] += 1
        longest = max(longest, outcome.seconds)
        if verdict != "well" or given.show:
            text = outcome.text.strip()
            print(f"{case.kind}/{case.name}: {verdict} ({outcome.seconds:.1f} s)\n    {text[-330:]}", flush=True)
    rows = {
        kind: {
            "cases": found.total(),
            "well": found["well"],
            "else": {k: n for k, n in sorted(found.items()) if k != "well"},
        }
        for kind, found in counts.items()
        if found
    }
    result = {
        "cases": sum(row["cases"] for row in rows.values()),
        "well": sum(row["well"] for row in rows.values()),
        "kinds": rows,
        "limits": {"seconds": given.seconds, "gib": MEMORY / 2**30},
        "longest_seconds": round(longest, 1),
    }
    print(json.dumps(result, indent=1))
    if given.only == [""]:
        OUT.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if result["well"] == result["cases"] else 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # libraries would complain of what is still there
