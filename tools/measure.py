"""The measures of the structure: size, public names, complexity, parameters, arrows between files.

python tools/measure.py            # a table
python tools/measure.py --arrows   # also which imports point up, and which files stand in a circle
python tools/measure.py --widest   # also the widest functions
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "scorefield"
BRANCHES = (
    ast.If,
    ast.For,
    ast.While,
    ast.ExceptHandler,
    ast.IfExp,
    ast.comprehension,
    ast.match_case,
    ast.Assert,
    ast.With,
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Width:
    """How wide a function is: branches + 1, lines, parameters."""

    where: str
    complexity: int
    lines: int
    parameters: int


def sources(root: Path = ROOT) -> dict[str, Path]:
    """Module names of the package to their files; a folder's `__init__` has the folder's name."""
    src = root / "src" / PACKAGE
    found = {}
    for path in sorted(src.rglob("*.py")):
        parts = path.relative_to(src.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def functions(root: Path = ROOT) -> list[Width]:
    """Every function of the package; a nested one also counts towards the one around it."""
    found = []
    for path in sources(root).values():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, Function):
                arguments = node.args
                count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
                own = bool(arguments.args) and arguments.args[0].arg in ("self", "cls")
                where = f"{path.relative_to(root)}:{node.lineno} {node.name}"
                found.append(Width(where, _complexity(node), _body_lines(node), count - own))
    return found


def _complexity(node: ast.AST) -> int:
    inside = list(ast.walk(node))
    choices = sum(len(n.values) - 1 for n in inside if isinstance(n, ast.BoolOp))
    return 1 + sum(isinstance(n, BRANCHES) for n in inside) + choices


def _body_lines(node: Function) -> int:
    """Lines of the body without its docstring."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if not body:
        return 0
    assert node.end_lineno is not None
    return node.end_lineno - body[0].lineno + 1


@cache
def imports(root: Path = ROOT) -> dict[str, set[str]]:
    """Which modules of the package each of its modules imports, also inside functions, but not for types alone."""
    files = sources(root)
    arrows: dict[str, set[str]] = {}
    for module, path in files.items():
        tree = ast.parse(path.read_text("utf-8"))
        arrows[module] = {to for to in _imported(tree, files) if to != module}
    return arrows


def _imported(tree: ast.AST, files: dict[str, Path]) -> Iterator[str]:
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in files)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                if inner in files and not _names_a_value(files[node.module], name.name):
                    yield inner
                elif node.module in files:
                    yield node.module


def _names_a_value(folder: Path, name: str) -> bool:
    """Whether a folder's `__init__` binds this name to a value of the module of the same name."""
    return bool(re.search(rf"\b{re.escape(name)}\b", folder.read_text("utf-8")))


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _executed(child)


def floors(root: Path = ROOT) -> list[list[str]]:
    """The floors of the house from the ground up, as the table of docs/architecture.md lists them."""
    text = (root / "docs" / "architecture.md").read_text("utf-8")
    rows = re.findall(r"^\| \d+ \| ([^|]*) \|", text, re.M)
    return [re.findall(r"`([\w./]+)`", row) for row in rows]


def floor_of(module: str, table: list[list[str]]) -> int | None:
    """The floor of a module: that of its own entry, or of the nearest folder around it that has one."""
    parts = module.split(".")[1:]
    for length in range(len(parts), 0, -1):
        word = "/".join(parts[:length])
        for k, row in enumerate(table):
            if word in row:
                return k
    return None


def upward(root: Path = ROOT) -> list[str]:
    """Imports that point to a higher floor."""
    table = floors(root)
    found = []
    for module, targets in imports(root).items():
        here = floor_of(module, table)
        if module == PACKAGE:
            continue
        for target in sorted(targets):
            there = floor_of(target, table)
            if target != PACKAGE and (here is None or there is None or there > here):
                found.append(f"{module} -> {target}")
    return found


def circles(root: Path = ROOT) -> list[list[str]]:
    """Groups of modules that import each other; the root, which collects the public names, is left out."""
    arrows = {m: {t for t in to if t != PACKAGE} for m, to in imports(root).items() if m != PACKAGE}
    return [sorted(group) for group in _components(arrows) if len(group) > 1]


def _components(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(v: str) -> None:
        index[v] = low[v] = len(index)
        stack.append(v)
        for w in sorted(arrows.get(v, ())):
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in stack:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            cut = stack.index(v)
            found.append(stack[cut:])
            del stack[cut:]

    for v in arrows:
        if v not in index:
            visit(v)
    return found


def picture(root: Path = ROOT) -> str:
    """The arrows between the entries of the table of floors, as a mermaid flowchart, without those that longer ways imply."""
    table = floors(root)
    entry = {word: k for k, row in enumerate(table) for word in row}

    def name(module: str) -> str | None:
        parts = module.split(".")[1:]
        return next((w for n in range(len(parts), 0, -1) if (w := "/".join(parts[:n])) in entry), None)

    arrows: dict[str, set[str]] = {word: set() for word in entry}
    for module, targets in imports(root).items():
        here = name(module)
        if here is not None:
            arrows[here] |= {there for t in targets if (there := name(t)) not in (None, here)}
    lines = ["flowchart TD"]
    for word in sorted(arrows, key=lambda w: (-entry[w], w)):
        indirect = set().union(*(_reach(arrows, t) for t in arrows[word])) if arrows[word] else set()
        lines += [f"    {word} --> {there}" for there in sorted(arrows[word] - indirect)]
    return "\n".join(lines)


def _reach(arrows: dict[str, set[str]], start: str) -> set[str]:
    """Everything below an entry."""
    seen: set[str] = set()
    left = list(arrows[start])
    while left:
        word = left.pop()
        if word not in seen:
            seen.add(word)
            left += arrows[word]
    return seen


def public_names(root: Path = ROOT) -> int:
    """Names in `__all__` of the package."""
    tree = ast.parse((root / "src" / PACKAGE / "__init__.py").read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
                value = node.value
                if isinstance(value, ast.List | ast.Tuple):
                    return sum(isinstance(e, ast.Constant) for e in value.elts)
    sys.path.insert(0, str(root / "src"))
    import scorefield

    return len(scorefield.__all__)


def touched(name: str, root: Path = ROOT) -> list[str]:
    """Files of the package that name a class, in code: what adding another one like it would touch."""
    found = []
    for path in sources(root).values():
        tree = ast.parse(path.read_text("utf-8"))
        words = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        words |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        words |= {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        words |= {n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
        words |= {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
        if name in words:
            found.append(str(path.relative_to(root / "src" / PACKAGE)))
    return found


EXAMPLES = {"SDE": "SubVP", "solver": "Tsit5", "operator": "Grayscale"}
"""Of each kind one that nothing but its own kind needs."""


def table(root: Path = ROOT) -> list[tuple[str, str]]:
    """The measures, each with its value."""
    files, widths = sources(root), functions(root)
    lines = sum(path.read_text("utf-8").count("\n") for path in files.values())
    return [
        ("src, lines / files", f"{lines:,} / {len(files)}"),
        ("public names at the root", str(public_names(root))),
        ("functions of cyclomatic complexity above 15", str(sum(w.complexity > 15 for w in widths))),
        ("the most complex", str(max(w.complexity for w in widths))),
        ("longest function body", str(max(w.lines for w in widths))),
        ("functions with more than 8 parameters", str(sum(w.parameters > 8 for w in widths))),
        *(
            (f"files that name {name}, as a new {kind} would be", str(len(touched(name, root))))
            for kind, name in EXAMPLES.items()
        ),
        ("imports that point up", str(len(upward(root)))),
        ("circles", str(len(circles(root)))),
    ]


def main() -> int:
    """Print the measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="a checkout; this one unless given")
    parser.add_argument("--arrows", action="store_true")
    parser.add_argument("--widest", action="store_true")
    parser.add_argument("--picture", action="store_true", help="draw the arrows anew in docs/architecture.md")
    options = parser.parse_args()
    if options.picture:
        page = options.root / "docs" / "architecture.md"
        text = page.read_text("utf-8")
        page.write_text(
            re.sub(r"```mermaid\n.*?```", f"```mermaid\n{picture(options.root)}\n```", text, flags=re.S), "utf-8"
        )
        return 0
    rows = table(options.root)
    width = max(len(what) for what, _ in rows)
    print("\n".join(f"{what:{width}}  {value}" for what, value in rows))
    if options.arrows:
        print("\n".join(["", "imports that point up:", *upward(options.root)]))
        print("\n".join(["", "circles:", *(", ".join(c) for c in circles(options.root))]))
        for kind, name in EXAMPLES.items():
            print(f"{kind} {name}: {', '.join(touched(name, options.root))}")
    if options.widest:
        widths = functions(options.root)
        for title, key in (("complexity", "complexity"), ("lines", "lines"), ("parameters", "parameters")):
            print(f"\nwidest by {title}:")
            for w in sorted(widths, key=lambda w: -getattr(w, key))[:25]:
                print(f"  {getattr(w, key):4} {w.where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
