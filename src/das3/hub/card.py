"""The model card: what a stranger has to know of an adapted model, in Markdown. It shows no image and names no file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from das3.hub.private import recorded_folder, without_paths
from das3.models.metadata import ModelMetadata
from das3.report.numbers import number, percent, points
from das3.report.provenance import changed_options
from das3.report.run_folder import RunFolder
from das3.training.inputs import INPUT_OPTIONS
from das3.training.run_folder import NON_RESULT_OPTIONS

__all__ = ["model_card"]

_PAPER = "[arXiv 2106.11653](https://arxiv.org/abs/2106.11653)"
_LIBRARIES = {"huggingface": "transformers", "smp": "segmentation-models-pytorch"}
_SIGNALS: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("agreement with itself under mirroring, light and scale (mean IoU)", lambda c: f"{c['consistency']:.3f}"),
    ("mean entropy, of the largest possible", lambda c: percent(c["signals"]["entropy"])),
    ("labels kept of those that the untrained model was sure of", lambda c: percent(c["sure_agreement"])),
    ("pixels that went to other classes, in total", lambda c: percent(c["share_shift"])),
    ("agreement with the mean prediction of all candidates (mean IoU)", lambda c: f"{c['ensemble_agreement']:.3f}"),
)
"""What the guard measured of a candidate, in words; all without labels."""


def model_card(run: RunFolder, metadata: ModelMetadata, repository: str, license: str | None = None) -> str:
    """README.md of a repository of the hub.

    Args:
        run: a finished run.
        metadata: of the model that it handed back.
        repository: owner/name.
        license: an identifier of the hub's list, such as "apache-2.0"; the card asks for it if None.
    """
    parts = [
        _front_matter(run, metadata, license),
        f"# {repository.split('/')[1]}\n\n{_origin(run, metadata)}",
        _loading(metadata, repository),
        _data(run),
        _recipe(run),
        _verdict(run),
        _limits(),
        _license(license),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _front_matter(run: RunFolder, metadata: ModelMetadata, license: str | None) -> str:
    base = _base_model(run)
    values = {
        "license": license or "unknown",
        "library_name": _LIBRARIES.get(metadata.origin.kind, "das3"),
        "pipeline_tag": "image-segmentation",
        "tags": ["das3", "semantic-segmentation", "domain-adaptation"],
        **({"base_model": base} if base else {}),
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def _base_model(run: RunFolder) -> str | None:
    """The hub id of the incoming model, None if it came from elsewhere."""
    model = str(run.recipe.get("model") or "")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model):
        return None
    places = [Path.cwd(), *(Path(here) for here in recorded_folder(run.folder))]
    return None if any((place / model).parent.exists() for place in places) else model


def _origin(run: RunFolder, metadata: ModelMetadata) -> str:
    names = metadata.class_names or ()
    classes = f" It has {len(names)} classes: {', '.join(map(_text, names))}." if names else ""
    return (
        f"A semantic segmentation model, adapted to new images without their labels and without its source data by "
        f"das3 {_text(str(run.summary.get('das3', '')))} ({_PAPER}). The incoming model was {_came_in(run, metadata)}."
        f"{classes}"
    )


def _came_in(run: RunFolder, metadata: ModelMetadata) -> str:
    """The incoming model by its public name, or by the last component of where it lay."""
    model, weights = run.recipe.get("model"), run.recipe.get("weights")
    if not model:
        return f"a Python object, {_code(metadata.origin.spec)}"
    if base := _base_model(run):
        named = f"[{base}](https://huggingface.co/{base})"
    else:
        named = _code(str(model) if re.fullmatch(r"[\w.]+:\w+", str(model)) else Path(str(model)).name)
    return f"{named} with weights {_code(Path(str(weights)).name)}" if weights else named


def _loading(metadata: ModelMetadata, repository: str) -> str:
    kind, spec = metadata.origin.kind, metadata.origin.spec
    lines = ["## Use", ""]
    own_code = kind == "object" or (kind == "plain" and not spec.startswith(("das3:", "torchvision:")))
    if own_code:
        name = spec if kind == "plain" else "package.module:function"
        lines += [
            f"The weights alone are here (`model.safetensors`, and `das3.json` with the preprocessing). The network is "
            f"its owner's code, `{name}`:",
            "",
            f"```sh\nhf download {repository} --local-dir MODEL",
            f"das3 predict --model {name} --weights MODEL --images DIR --out LABELS\n```",
        ]
        return "\n".join(lines)
    lines += [f"```sh\ndas3 predict --model {repository} --images DIR --out LABELS\n```", "", "```python"]
    lines += ["import das3", "", f'labels = das3.predict("{repository}", "DIR")', "```"]
    if kind == "huggingface":
        lines += ["", f"Or with transformers alone: `from_pretrained({repository!r})`."]
    if kind == "smp":
        lines += ["", f"Or with segmentation-models-pytorch alone: `smp.from_pretrained({repository!r})`."]
    return "\n".join([*lines, "", f"Preprocessing: {_preprocessing(metadata)}."])


def _preprocessing(metadata: ModelMetadata) -> str:
    p = metadata.preprocess
    size = f", resized to {p.size}" if p.size is not None else ""
    mean, std = (" ".join(f"{v:g}" for v in values) for values in (p.mean, p.std))
    return f"{p.channels}, values from 0 to {p.input_max:g}, mean {mean}, std {std}{size}"


def _data(run: RunFolder) -> str:
    counts = _set_sizes(run.folder / "inputs.json")
    lines = ["## Data", "", f"- target images, unlabelled: {counts.get('images', 'not recorded')}"]
    if skipped := run.summary.get("skipped_images"):
        lines.append(f"- of these not used, as they could not be read: {len(skipped)}")
    measured = counts.get("evaluation images")
    lines.append(f"- labelled images, for measuring alone: {measured if measured is not None else 'none'}")
    return "\n".join([*lines, "", "None of these images is in this repository. Source data were not used."])


def _set_sizes(file: Path) -> dict[str, int]:
    try:
        sets = json.loads(file.read_text(encoding="utf-8"))["sets"]
        return {str(what): len(digests) for what, digests in sets.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _recipe(run: RunFolder) -> str:
    hidden = INPUT_OPTIONS | NON_RESULT_OPTIONS
    changed = [row for row in changed_options(run.recipe) if row[0] not in hidden]
    rows = [(_code(key), _value(value), _value(default)) for key, value, default in changed]
    stages = ", ".join(map(str, run.recipe.get("stages") or [])) or "not recorded"
    lines = ["## Recipe", "", f"Stages: {_text(stages)}. Seed: {run.recipe.get('seed')}."]
    if rows:
        return "\n".join(
            [*lines, "", "Options other than the default:", "", _table(("option", "value", "default"), rows)]
        )
    return "\n".join([*lines, "All options are at their default."])


def _verdict(run: RunFolder) -> str:
    verdict = run.verdict
    lines = ["## Is it better?", "", *_measured(run)]
    if not verdict.get("reason"):
        return "\n".join([*lines, "das3 made no judgement of its own (`--guard` was stop or off)."])
    judged = "it is no worse than the model that came in" if verdict.get("changed") else "nothing better was found"
    sure = _text(str(verdict.get("confidence", "not recorded")))
    lines.append(f"Verdict of das3, without labels: {judged} (confidence: {sure}). {_text(str(verdict['reason']))}.")
    found = [c for c in verdict.get("candidates") or [] if isinstance(c, Mapping) and "signals" in c]
    incoming = next((c for c in found if c.get("kind") == "incoming"), None)
    chosen = next((c for c in found if c.get("name") == verdict.get("chosen")), None)
    if incoming and chosen:
        rows = [(what, value(incoming), value(chosen)) for what, value in _SIGNALS]
        lines += ["", "On a sample of the target images:", "", _table(("signal", "came in", "handed back"), rows)]
    return "\n".join([*lines, *_rejections(found)])


def _measured(run: RunFolder) -> list[str]:
    before, after = run.incoming_row.get("miou"), run.summary.get("miou")
    if before is None or after is None:
        return ["No labels were given, so nothing here is measured against the truth.", ""]
    said = "**worse** than" if after < before else "no worse than"
    return [
        f"Measured on labelled target images: mIoU {points(before)} % before, {points(after)} % after; on these it is "
        f"{said} the model that came in.",
        "",
    ]


def _rejections(candidates: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rejected = [c for c in candidates if c.get("rejected")]
    if rejected:
        yield from ("", "Candidates that were not taken:", "")
        yield from (f"- {_text(str(c['name']))}: {_text(str(c['rejected']))}" for c in rejected)


def _limits() -> str:
    judged = "The verdict above is made without labels and can be wrong."
    return (
        "## Limits\n\n"
        f"- {judged} Measure the model on labelled images of your own before you rely on it: `das3 evaluate`.\n"
        "- It was adapted to one set of target images. On others, also on those that the incoming model was trained "
        "on, it may be worse than that model.\n"
        "- It knows the classes of the incoming model alone, with that model's mistakes and biases where the images "
        "did not correct them. Rare classes gain least."
    )


def _license(license: str | None) -> str:
    if license:
        return f"## Licence\n\n{_code(license)}, as its publisher says. The incoming model's licence holds for it too."
    return (
        "## Licence\n\nTO BE FILLED IN by the publisher: the licence of the incoming model binds this one, and the "
        "licence of the target images may."
    )


def _value(value: Any) -> str:
    shown = without_paths(value)
    return _text(number(shown) if not isinstance(shown, list | dict) else json.dumps(shown, ensure_ascii=False))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows))


def _code(text: str) -> str:
    """A name as code, in one line."""
    return f"`{' '.join(text.replace('`', '').split())}`"


def _text(text: str) -> str:
    """Text that Markdown shows as it is, in one line: class names may hold anything."""
    return re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", " ".join(text.split()))
