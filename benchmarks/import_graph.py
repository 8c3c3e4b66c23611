"""Print the rooms of das3 (top-level modules and packages), what each imports, and the circles between them.

python benchmarks/import_graph.py [folder of the package]

Imports inside functions count, those for type checking alone do not.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

Graph = dict[str, dict[str, list[str]]]


def imports(path: Path, package: str = "das3") -> Iterator[tuple[str, int]]:
    """(module of the package, line) of each import in a file: "data.images" for das3.data.images."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    for_types = {id(inner) for check in checks for statement in check.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom) or id(node) in for_types:
            continue
        # A package's modules may be named behind `import`, as in `from das3.models import small`.
        before = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        names = [before + alias.name for alias in node.names]
        yield from ((name.partition(".")[2], node.lineno) for name in names if name.startswith(f"{package}."))


def import_graph(root: Path) -> Graph:
    """Room → imported room → where, as "file:line". The package's own `__init__` and `__main__` are no rooms."""
    files = [p.relative_to(root) for p in sorted(root.rglob("*.py")) if p.parent != root or p.stem[:2] != "__"]
    graph: Graph = {path.parts[0].removesuffix(".py"): {} for path in files}
    for path in files:
        room = path.parts[0].removesuffix(".py")
        for module, line in imports(root / path):
            other = module.partition(".")[0]
            if other in graph and other != room and f"{path}:{line}" not in graph[room].setdefault(other, []):
                graph[room][other].append(f"{path}:{line}")
    return graph


def reached(graph: Graph, start: str) -> set[str]:
    """The rooms that a room imports, directly or by way of others."""
    seen, todo = set[str](), [start]
    while todo:
        new = graph[todo.pop()].keys() - seen
        seen |= new
        todo += new
    return seen


def main(root: Path) -> None:
    """Print the graph of the package in that folder."""
    graph = import_graph(root)
    reach = {room: reached(graph, room) for room in graph}
    print(f"{len(graph)} rooms, {sum(map(len, graph.values()))} arrows; from the bottom up:")
    for room in sorted(graph, key=lambda room: (len(reach[room]), room)):
        print(f"  {room}: {', '.join(sorted(graph[room])) or '-'}")
    circular = [(room, other) for room in graph for other in graph[room] if room in reach[other]]
    print(f"{len(circular)} arrows are part of a circle")
    for room, other in circular:
        print(f"  {room} -> {other} at {', '.join(graph[room][other])}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "src" / "das3")
