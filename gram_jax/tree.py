"""Parameter trees: nested dicts of arrays, addressed by path names such as "layers/q"."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Tree = dict[str, Any]


def walk(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) for every leaf, in the order of the dicts.

    >>> list(walk({"embed": 1, "layers": {"q": 2}}))
    [('embed', 1), ('layers/q', 2)]
    """
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from walk(value, path + "/")
        else:
            yield path, value


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree as one flat dict from path to leaf; `unflatten` is the inverse."""
    return dict(walk(tree))


def unflatten(leaves: Mapping[str, Any]) -> Tree:
    """Build the nested tree from {path: leaf}.

    >>> unflatten({"embed": 1, "layers/q": 2})
    {'embed': 1, 'layers': {'q': 2}}
    """
    tree: Tree = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


def map_with_path(function: Callable[..., Any], tree: Mapping[str, Any], *others: Any) -> Tree:
    """Apply `function(path, leaf, *leaves of others)` to every leaf and keep the shape of `tree`."""
    flat = [flatten(other) for other in others]
    return unflatten({p: function(p, leaf, *(f[p] for f in flat)) for p, leaf in walk(tree)})


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> Tree:
    """Both trees in one; a path that both hold is an error."""
    a, b = flatten(first), flatten(second)
    if both := sorted(a.keys() & b.keys()):
        raise ValueError(f"both trees hold {both}")
    return unflatten({**a, **b})


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """A line for every leaf that `found` lacks, has in addition, or has in another shape, sorted by path.

    >>> import numpy as np
    >>> differences({"a": np.ones(2), "b": np.ones(2)}, {"b": np.ones(3), "c": np.ones(1)})
    ['a: not expected', 'b: shape [2], expected [3]', 'c: missing']
    """
    have, want = flatten(found), flatten(expected)
    lines = [f"{path}: missing" for path in want.keys() - have.keys()]
    lines += [f"{path}: not expected" for path in have.keys() - want.keys()]
    lines += [
        f"{path}: shape {list(have[path].shape)}, expected {list(want[path].shape)}"
        for path in have.keys() & want.keys()
        if tuple(have[path].shape) != tuple(want[path].shape)
    ]
    return sorted(lines)


def split(tree: Mapping[str, Any], keep: Callable[[str], bool]) -> tuple[Tree, Tree]:
    """(leaves whose path satisfies `keep`, the others); `merge` is the inverse."""
    leaves = flatten(tree)
    kept = {p: x for p, x in leaves.items() if keep(p)}
    return unflatten(kept), unflatten({p: x for p, x in leaves.items() if p not in kept})
