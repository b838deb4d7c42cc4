#!/usr/bin/env python3
"""Checks how files import one another: no circles, and only in the directions that the layout allows.

usage: scripts/check-imports.py [--list]   --list prints every file with what it imports

A file imports another where it names an item of it by `use` or by a path that begins with `crate`, `super`, `self` or another
crate of the workspace. Tests are left out. A `mod.rs` that only declares and re-exports is no place of its own: what is taken
from it is taken from where it is defined.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CRATES = {"reward": ROOT / "reward/src", "diffusion": ROOT / "diffusion/src", "social_reward": ROOT / "src"}
# What may not be imported by whom, by the beginnings of their module paths.
FORBIDDEN = [
    ("reward", "diffusion"),
    ("reward", "social_reward"),
    ("diffusion", "social_reward"),
    ("diffusion::algorithm", "diffusion::finetune"),
]


def without_tests(text):
    """The file's text without comments, strings and test modules."""
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r'"(?:\\.|[^"\\])*"', '""', text)
    return re.sub(r"#\[cfg\(test\)\]\s*(?:pub\S* )?mod \w+ \{.*\Z", "", text, flags=re.S)


def module_of(crate, path):
    parts = list(path.relative_to(CRATES[crate]).with_suffix("").parts)
    if parts[-1] in ("mod", "lib", "main"):
        parts.pop()
    return "::".join([crate, *parts])


def trees(text):
    """The paths of a `use` tree, with the names they take."""
    text = text.strip()
    head, brace, rest = text.partition("{")
    if not brace:
        path, _, name = text.partition(" as ")
        return [(path.strip(), (name or path.rsplit("::", 1)[-1]).strip())]
    found, depth, start = [], 0, 0
    inner = rest.rsplit("}", 1)[0]
    for place, letter in enumerate(inner + ","):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            if inner[start:place].strip():
                found += [(head + path, name) for path, name in trees(inner[start:place])]
            start = place + 1
    return found


class Workspace:
    def __init__(self):
        self.files = {}
        for crate, folder in CRATES.items():
            for path in sorted(folder.rglob("*.rs")):
                if path.stem != "tests":
                    self.files[module_of(crate, path)] = path
        self.texts = {module: without_tests(path.read_text()) for module, path in self.files.items()}
        self.exported = {module: self.exports(module) for module in self.files}

    def exports(self, module):
        """Names that a module re-exports, with the paths they stand for."""
        uses = re.findall(r"\bpub(?:\([^)]*\))? use ([^;]+);", self.texts[module])
        return {name: path.removesuffix("::self") for use in uses for path, name in trees(use)}

    def absolute(self, module, path):
        """A path as written in a module, from its crate's root; nothing for those of other crates."""
        parts = path.split("::")
        here = module.split("::")
        if parts[0] == "crate":
            parts[0] = here[0]
        elif parts[0] == "self":
            parts[:1] = here
        elif parts[0] == "super":
            while parts and parts[0] == "super":
                parts, here = parts[1:], here[:-1]
            parts = here + parts
        elif f"{module}::{parts[0]}" in self.files:
            parts = here + parts
        elif parts[0] not in CRATES:
            return None
        return [part for part in parts if part != "self"]

    def defined_in(self, parts, depth=0):
        """The module in whose file an item lies."""
        for length in range(len(parts), 0, -1):
            module = "::".join(parts[:length])
            if module not in self.files:
                continue
            name = parts[length] if length < len(parts) else None
            if name in self.exported[module] and depth < 8:
                target = self.absolute(module, self.exported[module][name])
                if target:
                    return self.defined_in(target + parts[length + 1 :], depth + 1)
            return module
        return None

    def imports(self, module):
        text = self.texts[module]
        paths = [path for use in re.findall(r"\buse ([^;]+);", text) for path, _ in trees(use)]
        rest = re.sub(r"\buse [^;]+;", "", text)
        children = [name.removeprefix(f"{module}::") for name in self.files if name.startswith(f"{module}::")]
        children = [name for name in children if "::" not in name]
        starts = "|".join(["crate", "super", "self", *CRATES, *children])
        paths += re.findall(rf"(?<![\w:.])(?:{starts})(?:::\w+)+", rest)
        found = set()
        for path in paths:
            parts = self.absolute(module, path)
            target = parts and self.defined_in(parts)
            # A child is part of its parent: what it takes from there is no arrow.
            if target and target not in CRATES and not f"{module}::".startswith(f"{target}::"):
                found.add(target)
        return found


def circles(graph):
    """Strongly connected components of more than one file (Tarjan, 1972)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            component = []
            while not component or component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def main():
    sys.setrecursionlimit(10_000)
    workspace = Workspace()
    graph = {module: workspace.imports(module) for module in workspace.files}
    if "--list" in sys.argv[1:]:
        for module, targets in graph.items():
            print(module, *sorted(targets), sep="\n    ")
    faults = []
    for component in circles(graph):
        arrows = [f"    {one} -> {other}" for one in component for other in sorted(graph[one] & set(component))]
        faults.append("files import one another in a circle:\n" + "\n".join(arrows))

    def within(module, folder):
        return module == folder or module.startswith(folder + "::")

    for module, targets in graph.items():
        for target in sorted(targets):
            for user, used in FORBIDDEN:
                if within(module, user) and within(target, used):
                    faults.append(f"{module} imports {target}: {user} may not import {used}")
    print(f"{len(graph)} files, {sum(map(len, graph.values()))} imports")
    if faults:
        sys.exit("\n".join(faults))


main()
