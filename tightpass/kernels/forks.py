"""Threads do not survive a fork: a child that asks OpenMP for them, ours or torch's, waits for ever. It is told instead."""

from __future__ import annotations

import os

from tightpass.errors import InputError


class _Process:
    """Whether threads have run in this process, and whether they had in the one that it was forked from."""

    ran = False
    orphaned = False


def _in_child() -> None:
    _Process.orphaned = _Process.ran


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def check_threads(count: int) -> None:
    """To be called before work on `count` threads. Raises InputError in a child forked after there was some."""
    if count == 1:
        return
    if _Process.orphaned:
        raise InputError(
            "this process was forked after its parent had worked on several threads, which do not survive that.\n"
            'Give multiprocessing the start method "spawn" or "forkserver", or fork before the first computation'
        )
    _Process.ran = True
