"""CUDA C++ -> C++ for the emulated device: launches, dynamic shared memory and volatile flags; anything else stays.

python translate.py IN.cu OUT.cpp
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

RULES = (
    (r"(\w+(?:<\w+>)?)<<<(.+?)>>>\(", r'::emulated::Launch("\1", \2)(\1, '),
    (
        r"extern __shared__ unsigned char (\w+)\[\];",
        r"unsigned char* const \1 = static_cast<unsigned char*>(::emulated::dynamic_shared());",
    ),
    (r"\*static_cast<volatile int\*>\(([^)]*)\)", r"::emulated::Flag(\1)"),
)
LEFT = ("<<<", "volatile", "asm")
"""What no rule may leave behind."""


def translated(source: str, name: str) -> str:
    """Raises ValueError for CUDA that the emulated device does not know."""
    for pattern, replacement in RULES:
        source = re.sub(pattern, replacement, source)
    left = [word for word in LEFT if re.search(rf"{re.escape(word)}", source)]
    if left:
        raise ValueError(f"{name}: the emulated device does not know {', '.join(left)}")
    return f'#line 1 "{name}"\n{source}'


if __name__ == "__main__":
    given, out = map(Path, sys.argv[1:3])
    out.write_text(translated(given.read_text(encoding="utf-8"), str(given)), encoding="utf-8")
