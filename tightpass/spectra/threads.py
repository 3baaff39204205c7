"""Small decompositions: one per core, each on one thread.

LAPACK on several threads is slower on small matrices than several LAPACKs on one
thread each (3-4 times on 768 x 768, OpenBLAS#1881).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

from tightpass.kernels.forks import check_threads

Item = TypeVar("Item")
Result = TypeVar("Result")


def one_per_core(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """[work(item), ...] on as many workers as torch has threads, BLAS limited to one each.

    Raises InputError in a child forked after threads had run, where it might hang.
    """
    workers = torch.get_num_threads()
    check_threads(workers)
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, items))
