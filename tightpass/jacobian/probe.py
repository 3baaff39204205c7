"""Does a claimed structure hold? Random tangents and cotangents that must not leak."""

from __future__ import annotations

import torch

from tightpass.errors import VerificationError
from tightpass.jacobian.autodiff import Linearisation
from tightpass.structure import Structure

PROBED_TOKENS = 5


def check_structure(whole: Linearisation, structure: Structure) -> None:
    """Raises VerificationError if an output token depends on an input token that it must not.

    A random cotangent on output token t is pulled back; it may reach only the tokens of row t,
    for the first, the last and some tokens between. Anything above rounding is a leak.
    """
    tokens = whole.y.shape[0]
    chosen = sorted({round(i * (tokens - 1) / (PROBED_TOKENS - 1)) for i in range(PROBED_TOKENS)})
    generator = torch.Generator().manual_seed(0)
    cotangents = torch.zeros(len(chosen), *whole.y.shape, dtype=whole.y.dtype)
    for i, t in enumerate(chosen):
        cotangents[i, t] = torch.randn(whole.y.shape[1], generator=generator, dtype=whole.y.dtype)
    pulled = whole.pull(cotangents.to(whole.y.device)).abs().amax(-1)  # (probe, tokens)
    for i, t in enumerate(chosen):
        allowed = structure.row(t, tokens)
        outside = [s for s in range(tokens) if s not in allowed]
        leak = float(pulled[i, outside].max()) if outside else 0.0
        if not leak <= 4 * torch.finfo(pulled.dtype).eps * float(pulled[i].max()):
            raise VerificationError(
                f"claimed {structure.name}, but output token {t} depends on input tokens outside of "
                f"{allowed.start}..{allowed.stop - 1} (derivative {leak:.1e}); use structure=Dense()"
            )
