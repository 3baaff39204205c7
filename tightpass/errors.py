"""What can go wrong by the caller's doing, each with the command's exit code.

A message has one or two lines: what was expected, what was got, what to do.
"""

from __future__ import annotations


class TightpassError(Exception):
    """Base of every error the package raises on purpose."""

    exit_code = 2


class InputError(TightpassError, ValueError):
    """A request that cannot be carried out as it stands (exit code 2)."""


class InterruptedRunError(TightpassError):
    """Stopped half-way; the same command continues (exit code 3)."""

    exit_code = 3


class VerificationError(TightpassError, ArithmeticError):
    """A computed or stored result failed its own check (exit code 4)."""

    exit_code = 4


class InstallationError(TightpassError, RuntimeError):
    """Parts of the package that do not belong together: nothing to fall back on in silence (exit code 4)."""

    exit_code = 4


class DoesNotFitError(TightpassError, MemoryError):
    """The given memory or disk is too small (exit code 5)."""

    exit_code = 5
