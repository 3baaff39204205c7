"""Short names of models, and which of them a wrong one was meant to be."""

from __future__ import annotations

import difflib

from tightpass.models.packages import PACKAGES
from tightpass.models.sizes import ALIASES

NEAR = 0.75
"""How alike names must be, of 1, for the one to be suggested for the other."""


def nearest(name: str) -> list[str]:
    """Short names that a name begins, or is a slip of the pen away from."""
    known, name = ["demo", *ALIASES, *PACKAGES], name.lower()
    begun = [other for other in known if other.startswith(name)]
    return begun[:3] or difflib.get_close_matches(name, known, n=3, cutoff=NEAR)
