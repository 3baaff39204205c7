"""A function that was handed in: what it does that a Jacobian cannot follow, in words, before any number is made of it."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tightpass.errors import InputError
from tightpass.jacobians.autodiff import Function, Linearisation
from tightpass.jacobians.perturbed import moved
from tightpass.jacobians.probe import explained, ratio
from tightpass.models.differences import ALLOWED, direction, loses_precision, slope_error
from tightpass.models.genuine import genuine

SIDED = {"relu": 0.0, "relu_": 0.0, "abs": 0.0, "abs_": 0.0, "threshold": 0.0, "leaky_relu": 0.0, "sign": 0.0}
"""Operations whose derivative jumps, and where."""


CANCELS = 4
"""Times how far a perturbed J is from J: two products of it, each with its own rounding."""


class Edges(TorchDispatchMode):
    """Counts entries of relu, abs and clamp that lie exactly where the derivative jumps."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in SIDED or name in ("clamp", "clamp_min", "clamp_max", "hardtanh"):
            places = [SIDED[name]] if name in SIDED else [a for a in args[1:] if isinstance(a, int | float)]
            at = sum(int((args[0] == place).sum()) for place in places)
            if at:
                self.found[name] = self.found.get(name, 0) + at
        return func(*args, **(kwargs or {}))


class Cuts(TorchFunctionMode):
    """Whether some of the values inside are held fixed: by detach, .data, .item() and the like, or no gradients there.

    What a custom autograd.Function does in its own forward is its own business, and is not seen.
    """

    FIXING = frozenset({"detach", "detach_", "item", "tolist", "numpy", "__float__", "__int__", "__array__"})

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        data: Any = torch.Tensor.data
        off = func is torch._C._set_grad_enabled and args[:1] == (False,)
        fixes = getattr(func, "__name__", "") in self.FIXING or func == data.__get__
        self.seen = self.seen or off or fixes or torch.is_inference_mode_enabled()
        return func(*args, **(kwargs or {}))


def _cuts(fn: Function, x: torch.Tensor) -> bool:
    mode = Cuts()
    with torch.no_grad():
        point = x.clone()
        with mode:
            fn(point)
    return mode.seen


def check_function(whole: Linearisation) -> str:
    """What was looked for in a function and its derivative, in words, for the checks of its spectrum.

    Raises InputError where it gives no one (tokens, d) tensor of x's precision, the same each time, finite, with a
    derivative that forward and reverse mode agree on and that is not zero where the function moves.
    """
    fn, x, y = whole.fn, whole.x, whole.y
    if y.ndim != 2 or y.dtype != x.dtype or 0 in y.shape:
        raise InputError(
            f"the function must return a (tokens, d) tensor of {x.dtype}, got shape {tuple(y.shape)}, {y.dtype}{_mended(x, y)}"
        )
    if not bool(y.isfinite().all()):
        raise InputError("the function's value at x is not finite, so it has no Jacobian there")
    edges = Edges()
    with torch.no_grad(), edges:
        again = fn(x.clone())
    _check_same(y, again)
    generator = torch.Generator().manual_seed(2)
    w = torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device)
    v = direction(x, seed=3)
    pulled, pushed = whole.pull(w[None])[0], whole.push(v[None])[0]
    if not bool(pulled.isfinite().all() and pushed.isfinite().all()):
        raise InputError(
            "the derivative at x is not finite (NaN or infinite): a square root of 0, 0/0 or an overflow; move x"
        )
    largest = max(float(pulled.abs().max()), float(pushed.abs().max()))
    if not _adjoint(whole, pulled, pushed, v, w) or (largest == 0 and not edges.found and _moves(fn, x, y)):
        raise InputError(f"no Jacobian of this function: {diagnosis(whole) or WHO_KNOWS}")
    if largest == 0 and not _reaches(fn, x):
        raise InputError(f"no Jacobian of this function: {APART}")
    error, allowed = slope_error(fn, x, v, pushed)
    inside = narrowed(fn, x)
    if inside is not None and (loses_precision(fn, x) or error > allowed or _stands_still(inside, fn, x, y)):
        raise InputError(f"no Jacobian of this function: {_lower(fn, x, inside)}")
    if not edges.found and error > allowed and _cuts(fn, x):
        raise InputError(f"no Jacobian of this function: {CUT}")
    return f"{_sided(edges)}; {_confirmed(error, allowed)}"


def _confirmed(error: float, allowed: float) -> str:
    """What finite differences say of the derivative, which is torch's, or an autograd.Function's own, and taken as it is."""
    if error <= allowed:
        return f"finite differences along one direction confirm the derivative to {max(error, 1e-16):.0e}"
    return (
        f"finite differences along one direction do not confirm the derivative (apart by {error:.0e} of it): it bends or "
        "rounds too much there, or a jvp and backward of your own are wrong alike"
    )


def _sided(edges: Edges) -> str:
    seen = ", ".join(f"{count} entries of {name}" for name, count in edges.found.items())
    return (
        f"one-sided derivatives: {seen} lie exactly where the derivative jumps; the one that torch takes was used"
        if seen
        else "one-sided derivatives were not checked: no relu, abs or clamp at its edge was seen, other operations may have one"
    )


def _adjoint(
    whole: Linearisation, pulled: torch.Tensor, pushed: torch.Tensor, v: torch.Tensor, w: torch.Tensor
) -> bool:
    """Whether w·(J v) = (Jᵀ w)·v but for rounding: of the products, or, where J cancels, of what they are made of."""
    largest = max(float(pulled.abs().max()), float(pushed.abs().max())) or 1.0
    a, b = (side.double() / largest for side in (pulled, pushed))  # squares may leave the range
    reach = max(float(b.norm() * w.double().norm()), float(a.norm() * v.double().norm()))
    apart = abs(float((w.double() * b).sum() - (a * v.double()).sum()))
    if ratio(apart, reach) <= explained(whole.x.dtype):
        return True
    return apart * largest <= CANCELS * moved(whole) * float(v.double().norm()) * float(w.double().norm())


CUT = (
    "a part of its derivative is lost: detach, .data, .item(), no_grad or inference_mode around a part of it; take it out. "
    "A part that is to be held fixed is computed outside of the function"
)
APART = "its result does not depend on x: no operation that has a derivative leads from x to it; return what is computed from x"
WHO_KNOWS = "derivatives in forward and in reverse mode differ; one of its operations has a wrong jvp or backward"


def diagnosis(whole: Linearisation) -> str | None:
    """Why products with a function's Jacobian disagree, in words; None if nothing is found."""
    fn, x = whole.fn, whole.x
    with torch.no_grad():
        first, second = fn(x.clone()), fn(x.clone())
    if not _same(first, second):
        return "it gives different values at the same x: random, or with a state; make it a function of x alone"
    v = direction(x, seed=3)
    pushed = whole.push(v[None])[0]
    if not bool(pushed.isfinite().all()):
        return "its derivative at x is not finite (NaN or infinite)"
    if inside := narrowed(fn, x):
        return _lower(fn, x, inside)
    error, allowed = slope_error(fn, x, v, pushed)
    if not bool(pushed.any()) and error > allowed:
        return "its derivative is zero though it moves with x: no_grad, detach or rounding inside"
    if error > allowed and _cuts(fn, x):
        return CUT
    if error > allowed:
        return (
            f"its forward-mode derivative (jvp) differs from finite differences by {error:.1e}, relatively: it is wrong"
        )
    w = torch.ones_like(whole.y)
    if not bool(whole.pull(w[None]).any()) and bool(pushed.any()):
        return (
            "its derivative is zero though it moves with x: no_grad or detach inside, or a backward that returns zeros"
        )
    if _cuts(fn, x):
        return CUT
    if error <= ALLOWED[x.dtype]:
        return "its backward differs from its jvp, which finite differences confirm: the backward pass is wrong"
    return None


def _mended(x: torch.Tensor, y: torch.Tensor) -> str:
    """What to do with a result of another shape or precision, in words; empty for one of no numbers."""
    if 0 in y.shape:
        return ""
    if y.ndim == 3 and len(y) == 1:
        return "; take the batch off: lambda x: fn(x)[0]"
    if y.ndim == 2:
        return f"; give x in {y.dtype}, or a function that keeps its precision" if y.is_floating_point() else ""
    return (
        "; a row a token, such as lambda x: fn(x).reshape(len(x), -1)"
        if y.ndim > 2
        else "; of one row: lambda x: fn(x).reshape(1, -1)"
    )


def _reaches(fn: Function, x: torch.Tensor) -> bool:
    """Whether any operation that is differentiated leads from x to the value."""
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        y = fn(point)
        return y.requires_grad and torch.autograd.grad(y.sum(), point, allow_unused=True)[0] is not None


def _check_same(y: torch.Tensor, again: Any) -> None:
    if not isinstance(again, torch.Tensor) or not _same(y, again):
        raise InputError(
            "the function gives different values at the same x: it is random (dropout: call .eval()), has a state, "
            "or changes its argument; make it a function of x alone"
        )


def _same(y: torch.Tensor, again: torch.Tensor) -> bool:
    if y.shape != again.shape:
        return False
    apart = (y.double() - again.detach().double()).norm()
    return bool(apart <= 64 * torch.finfo(y.dtype).eps * y.double().norm())


def _moves(fn: Function, x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether the value moves in proportion to a step, as it does where a derivative was lost."""
    v = direction(x, seed=4)
    with torch.no_grad():
        steps = [float((fn(x + h * v) - fn(x - h * v)).double().norm()) for h in (1e-2, 5e-3)]
    small = 1e3 * torch.finfo(y.dtype).eps * float(y.double().norm())
    return steps[1] > small and 1.6 < steps[0] / steps[1] < 2.5


class _Narrowing(TorchDispatchMode):
    """To which precision a tensor of some precision was turned, if to a lower one."""

    def __init__(self, precision: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.precision = precision
        self.seen: torch.dtype | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and self._below(out.dtype) and any(map(self._full, args)):
            self.seen = out.dtype
        return out

    def _below(self, dtype: torch.dtype) -> bool:
        return dtype.is_floating_point and dtype.itemsize < self.precision.itemsize

    def _full(self, given: Any) -> bool:
        """A scalar takes the precision of what it meets, and is no loss."""
        return isinstance(given, torch.Tensor) and given.dtype == self.precision and given.ndim > 0


def narrowed(fn: Function, x: torch.Tensor) -> torch.dtype | None:
    """The lower precision that it turns a tensor of x's into, if it does."""
    mode = _Narrowing(x.dtype)
    with torch.no_grad(), mode:
        fn(x.clone())
    return mode.seen


def _stands_still(inside: torch.dtype, fn: Function, x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether its value is another one without its casts to half precision, in which it does not move by the steps that rounding
    is looked for with."""
    if inside.itemsize >= torch.float32.itemsize:
        return False
    try:
        with torch.no_grad():
            return not _same(y, genuine(fn)(x.clone()))
    except Exception:  # a user's function may raise anything
        return False


def _lower(fn: Function, x: torch.Tensor, inside: torch.dtype) -> str:
    """What to tell of a function that computes in a precision below x's."""
    said = f"it computes in a lower precision inside ({_name(inside)} within {_name(x.dtype)}); give "
    remedies = ["tp.genuine(fn), which lifts such casts"] if _lifted(fn, x) else []
    if inside == torch.float32:
        remedies.append("x in float32")
    return said + (" or ".join(remedies) or f"a function that computes in {_name(x.dtype)}")


def _lifted(fn: Function, x: torch.Tensor) -> bool:
    """Whether it computes in x's precision, and at all, once its casts are lifted: weights in half precision meet x then."""
    try:
        return narrowed(genuine(fn), x) is None
    except Exception:  # a user's function may raise anything
        return False


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
