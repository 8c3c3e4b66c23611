"""Pages and marks that the docs site makes from the code. A hook of MkDocs; run as a script, it writes docs/errors.

Nothing is fetched, neither by the build nor by the finished site: equations become MathML.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent


def error_pages() -> dict[str, str]:
    """File name → page of each class of errors, made from its docstring."""
    from das3 import errors

    classes = [e for e in vars(errors).values() if inspect.isclass(e) and issubclass(e, errors.Das3Error)]
    return {f"{kind.__name__}.md": _error_page(kind) for kind in classes}


def _error_page(kind: type[Exception]) -> str:
    text = inspect.getdoc(kind) or ""
    about = text.partition("\nAttributes:")[0].strip()
    base = kind.__mro__[1].__name__
    above = f"A kind of [{base}]({base}.md). " if base != "Exception" else ""
    below = ", ".join(f"[{sub.__name__}]({sub.__name__}.md)" for sub in kind.__subclasses__())
    kinds = f"Its kinds: {below}. " if below else ""
    return f"# {kind.__name__}\n\n{about}\n\n{above}{kinds}In Python: `das3.{kind.__name__}`.\n"


def options_page() -> str:
    """Every option of an adaptation and of each stage, as a table per group."""
    from das3.dataclass_options import option_rows
    from das3.recipe import Recipe
    from das3.registry import DAS3_STAGES, stage_types

    parts = [
        "# Options",
        "Names are those of Python calls and recipe files; on the command line `batch_size` is `--batch-size`, and the "
        "option `lr` of the stage `align` is `--align.lr`. Made from the code.",
        "## A run",
        _table(option_rows(Recipe)),
    ]
    own = {stage.name for stage in DAS3_STAGES}
    for name, stage in stage_types().items():
        parts += [f"## Stage `{name}`{'' if name in own else ' (a method to compare with)'}"]
        parts += [(inspect.getdoc(stage) or "").split("\n\n")[0], _table(option_rows(stage.Options))]
    return "\n\n".join(parts) + "\n"


def _table(rows: list[tuple[str, str, str]]) -> str:
    cells = ((f"`{name}`", f"`{default}`", text.replace("|", "\\|")) for name, default, text in rows)
    return "\n".join(["| option | default | |", "|---|---|---|", *("| " + " | ".join(row) + " |" for row in cells)])


def on_files(files: Any, config: Any) -> Any:
    """Add the generated page."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "reference/options.md", content=options_page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Equations as MathML, and no links out of the docs, where there is no site to lead to."""
    kept: list[str] = []

    def keep(match: re.Match[str]) -> str:
        kept.append(match[0])
        return f"\0{len(kept) - 1}\0"

    text = re.sub(r"^```.*?^```|`[^`\n]+`", keep, markdown, flags=re.M | re.S)
    text = re.sub(r"\$\$(.+?)\$\$", lambda m: _mathml(m[1], "block"), text, flags=re.S)
    text = re.sub(r"\$([^$\n]+)\$", lambda m: _mathml(m[1], "inline"), text)
    outside = "../" * (page.file.src_uri.count("/") + 1)
    text = re.sub(rf"\[([^\]]+)\]\({re.escape(outside)}[^)]*\)", r"\1", text)
    return re.sub("\0(\\d+)\0", lambda m: kept[int(m[1])], text)


def _mathml(latex: str, display: str) -> str:
    from latex2mathml.converter import convert

    return convert(" ".join(latex.split()), display=display)


if __name__ == "__main__":
    for name, page in error_pages().items():
        (DOCS / "errors" / name).write_text(page, encoding="utf-8")
