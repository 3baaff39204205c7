"""One Jacobian -> its verdict, by whichever method is asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tightpass import doors
from tightpass.errors import InputError
from tightpass.jacobian.operator import Jacobian
from tightpass.jacobian.written import Written
from tightpass.rank.evidence import collect
from tightpass.rank.leading import DEFAULT_K, leading_spectrum
from tightpass.rank.verdict import Spectrum, check_k, check_method, verdict


def spectrum(J: Jacobian, method: str = "auto", vectors: int = 0, k: int | None = None) -> Spectrum:
    """The singular values of a Jacobian, with floor, labels and rank.

    method   "auto" or "exact": all values, J is written out in memory; "topk": the k leading ones, J is never formed
    vectors  how many leading singular vectors to keep as U, Vh, with residuals
    k        of "topk" only; 64 if left out

    Raises VerificationError if the values cannot be verified.
    """
    check_method(method)
    if not isinstance(J, Jacobian):
        raise InputError(f"spectrum expects the result of tightpass.jacobian, got {type(J).__name__}")
    if isinstance(vectors, bool) or not isinstance(vectors, int | np.integer):
        raise InputError(f"vectors must be a whole number, got {doors.shown(vectors)}")
    if vectors < 0:
        raise InputError(f"vectors must be at least 0, got {vectors}")
    check_k(method, k, vectors)
    if method == "topk":
        found = leading_spectrum(J, DEFAULT_K if k is None else k, vectors)
        return replace(found, checks=(*found.checks, *J.looked))
    written = Written.like(J)
    evidence = collect(J, written.kept.append, written.panels)
    found = verdict(written, evidence, J.name, J.tokens_in, vectors, J.factors)
    return replace(found, checks=(*found.checks, *J.looked))
