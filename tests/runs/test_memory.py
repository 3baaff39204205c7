"""How much memory is free: of the machine, and of the control groups that the process lies in."""

from __future__ import annotations

import psutil
import pytest

from tightpass.memory import free_memory

V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def write_group(folder, limit, used, cache=None, names=V2):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    if cache is not None:
        (folder / "memory.stat").write_text(f"anon 12\n{names[2]} {cache}\nslab 7\n")


def process_in(folder, *lines):
    told = folder / "cgroup-of-this-process"
    told.write_text("".join(f"{line}\n" for line in lines))
    return told


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"": ("max", 900), "job": ("max", 800), "job/step": (5000, 1000)}, 4000),  # the own one
        ({"": (9000, 900), "job": (3000, 1000), "job/step": (5000, 1000)}, 2000),  # one that it lies in
        ({"": (1000, 900), "job": ("max", 1000), "job/step": ("max", 1000)}, 100),  # the root, as in a container
        ({"job/step": (500, 1000)}, 0),
        ({"job/step": ("nonsense", 1000), "job": (3000, 1000)}, 2000),
    ],
)
def test_the_tightest_group_counts(limits, expected, tmp_path):
    for path, (limit, used) in limits.items():
        write_group(tmp_path / path, limit, used)
    write_group(tmp_path / "another", 1, 0)
    assert free_memory(tmp_path, process_in(tmp_path, "0::/job/step")) == expected


def test_groups_of_the_first_version(tmp_path):
    lines = ("12:cpu,cpuacct:/elsewhere", "4:memory:/slurm/job_7", "0::/unified")
    write_group(tmp_path / "memory" / "slurm" / "job_7", 5000, 1000, names=V1)
    write_group(tmp_path / "memory" / "slurm", 2**63 - 4096, 1000, names=V1)
    write_group(tmp_path / "memory" / "elsewhere", 1, 0, names=V1)
    assert free_memory(tmp_path, process_in(tmp_path, *lines)) == 4000


def test_cached_files_make_room(tmp_path):
    write_group(tmp_path / "job", 5000, 4500, cache=3000)
    assert free_memory(tmp_path, process_in(tmp_path, "0::/job")) == 3500
    write_group(tmp_path / "memory" / "job", 5000, 4500, cache=1000, names=V1)
    assert free_memory(tmp_path, process_in(tmp_path, "9:memory:/job")) == 1500


@pytest.mark.parametrize("line", ["0::/of/the/host", "0::/../outside", "no such format"])
def test_what_cannot_be_read_does_not_count(line, tmp_path):
    process = process_in(tmp_path, line)
    machine = psutil.virtual_memory().total
    assert 0 < free_memory(tmp_path / "nowhere", process) <= machine
    assert 0 < free_memory(tmp_path, tmp_path / "nowhere") <= machine
    write_group(tmp_path / "root", 700, 200)
    write_group(tmp_path / "outside", 1, 0)
    if line.startswith("0:"):
        assert free_memory(tmp_path / "root", process) == 500
