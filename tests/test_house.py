"""What the house promises, looked for in its source."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import tightpass
from tightpass.jacobians import forms
from tightpass.jacobians.forms.base import Form

ROOT = Path(tightpass.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))


def subclasses(kind):
    """All of a kind, in whatever file of the forms."""
    for module in pkgutil.iter_modules(forms.__path__, f"{forms.__name__}."):
        importlib.import_module(module.name)
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def names_in(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} | {
        n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)
    }


def asked_for(source: str) -> set[str]:
    """Names of classes in the second argument of isinstance and issubclass."""
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and len(n.args) == 2]
    asking = [n for n in calls if isinstance(n.func, ast.Name) and n.func.id in ("isinstance", "issubclass")]
    return {name for call in asking for name in names_in(call.args[1])}


def test_no_form_is_asked_what_it_is():
    known = {kind.__name__ for kind in subclasses(Form)} | {"Form"}
    assert {"Autodiff", "ClosedMLP", "ClosedAttention", "Chain"} <= known
    assert asked_for("isinstance(x, Form | forms.Chain)") == {"Form", "forms", "Chain"}  # it sees what it looks for
    found = {
        str(path.relative_to(ROOT)): names for path in SOURCES if (names := asked_for(path.read_text("utf-8")) & known)
    }
    assert found == {}


def test_modules_are_short_enough_to_read():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 600} == {}
