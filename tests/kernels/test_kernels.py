"""The compiled kernels against the plain reference in float64, and what they refuse."""

from __future__ import annotations

import ast
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tightpass as tp
from tightpass.errors import InputError, InstallationError
from tightpass.kernels import native
from tightpass.kernels.attention import attention_blocks
from tightpass.kernels.products import product
from tightpass.kernels.reference import attention as reference_attention
from tightpass.kernels.reference import rows as reference_rows
from tightpass.kernels.rows import gather_rows
from tightpass.kernels.svd import sturm_counts
from tightpass.report.doctor import diagnosis

DTYPES = [torch.float32, torch.float64]
SIZES = [(1, 1, 1, 1), (5, 3, 21, 21), (17, 2, 7, 53), (8, 1, 9, 48), (3, 13, 5, 31), (34, 4, 11, 97)]
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")),
]


def attention_arguments(tokens, heads, d_out, d_in, norm, dtype=torch.float64, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)

    def array(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).to(device)

    names = {
        "a": array(tokens, heads, tokens).softmax(-1),
        "vo": array(d_out, heads, tokens),
        "vt": array(d_out, heads, tokens),
        "rest": array(d_out, heads, tokens),
        "p": array(heads, d_out, d_in),
        "k": array(tokens, heads, d_in),
        "q": array(tokens, d_out, d_in),
    }
    if norm:
        x, r = array(tokens, d_in), array(tokens).abs()
        names["norm"] = (
            torch.einsum("hoj,sj->ohs", names["p"], x),
            torch.einsum("thj,sj->ths", names["k"], x),
            torch.einsum("toj,tj->to", names["q"], x),
            x,
            r,
        )
    return names


def doubled(arguments):
    return {
        key: tuple(part.double().cpu() for part in value) if isinstance(value, tuple) else value.double().cpu()
        for key, value in arguments.items()
    }


def plain_torch(a, vo, vt, rest, p, k, q, columns, norm=None):
    """What one would write in torch: every term in one einsum, (T, T, d_out, d_in)."""
    mean = vt + rest
    update = a[:, :, :, None] * (vo.permute(1, 2, 0)[None] - mean.permute(2, 1, 0)[:, :, None])  # (t, h, s, o)
    w = torch.einsum("ths,hoj->tsoj", a, p) + torch.einsum("thso,thj->tsoj", update, k)
    index = torch.arange(len(a))
    w[index, index] += q
    if norm is not None:
        x, r = norm[3:]
        w = r[None, :, None, None] * (w - torch.einsum("tsoj,sj->tso", w, x)[..., None] * x[None, :, None] / x.shape[1])
    keep = torch.arange(a.shape[2])[None] < torch.tensor(columns)[:, None]
    return w * keep[:, :, None, None].to(w)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_attention_blocks(size, causal, norm, dtype, device):
    tokens, _, d_out, d_in = size
    given = attention_arguments(*size, norm, dtype, device)
    columns = [t + 1 if causal else tokens for t in range(tokens)]
    out = torch.full((tokens, tokens, d_out, d_in), 7.0, dtype=dtype, device=device)
    attention_blocks(**given, out=out, columns=columns, diagonal=range(tokens))
    exact = torch.full(out.shape, 7.0, dtype=torch.float64)
    reference_attention.attention_blocks(
        **{"norm": None} | doubled(given), out=exact, columns=columns, diagonal=range(tokens), first=None
    )
    written = exact != 7.0
    assert torch.all(out.cpu()[~written] == 7.0)
    worst = float((out.cpu().double() - exact).abs()[written].max())
    plain = plain_torch(**given, columns=columns) if device == "cpu" else None
    allowed = 4 * torch.finfo(dtype).eps * float(exact[written].abs().max())
    if plain is not None:
        allowed = max(allowed, 2 * float((plain.double() - exact).abs()[written].max()))
    assert worst <= allowed


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_dense_and_unaligned_outputs_agree(dtype, device):
    tokens, heads, d_out, d_in = 6, 3, 10, 37
    given = attention_arguments(tokens, heads, d_out, d_in, True, dtype, device)
    columns, first = [t + 1 for t in range(tokens)], [t * (t + 1) // 2 for t in range(tokens)]
    packed = torch.zeros(21, d_out, d_in, dtype=dtype, device=device)
    attention_blocks(**given, out=packed, columns=columns, diagonal=range(tokens), first=first)
    room = torch.zeros(tokens * d_out * (tokens * d_in + 5) + 3, dtype=dtype, device=device)
    step = tokens * d_in + 5
    dense = room[3:].as_strided((tokens, tokens, d_out, d_in), (d_out * step, d_in, step, 1), 3)
    attention_blocks(**given, out=dense, columns=columns, diagonal=range(tokens))
    for t in range(tokens):
        assert torch.equal(dense[t, : t + 1], packed[first[t] : first[t] + t + 1])
        assert not dense[t, t + 1 :].any()
    assert int((room != 0).sum()) <= 21 * d_out * d_in


def test_the_query_term_may_lie_in_the_output():
    given = attention_arguments(5, 2, 7, 19, True)
    columns = [t + 1 for t in range(5)]
    expected = torch.zeros(5, 5, 7, 19, dtype=torch.float64)
    attention_blocks(**given, out=expected, columns=columns, diagonal=range(5))
    out = torch.zeros_like(expected)
    index = torch.arange(5)
    out[index, index] = given["q"]
    within = out.as_strided((5, 7, 19), (5 * 7 * 19 + 7 * 19, 19, 1))
    attention_blocks(**given | {"q": within}, out=out, columns=columns, diagonal=range(5))
    assert torch.equal(out, expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit(threads):
    given = attention_arguments(9, 4, 33, 65, True, torch.float32)
    outs = [torch.zeros(9, 9, 33, 65) for _ in range(2)]
    for out, count in zip(outs, (1, threads), strict=True):
        attention_blocks(**given, out=out, columns=[9] * 9, diagonal=range(9), threads=count)
    assert torch.equal(*outs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("units", "d", "n"), [(1, 1, 1), (50, 21, 37), (11, 97, 5), (4, 8, 0), (300, 129, 300)])
@pytest.mark.parametrize("norm", [False, True])
def test_gather_rows(units, d, n, norm, dtype, device):
    generator = torch.Generator().manual_seed(3)

    def array(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).to(device)

    weight, slope, x, r = array(units, d), array(n), array(3, d), array(3).abs()
    index = torch.randint(units, (n,), generator=generator).to(device)
    token = torch.arange(n, device=device) % 3
    out = array(n, d + 2)[:, 1:-1]  # rows neither aligned nor adjacent
    pair = (x, r) if norm else None
    gather_rows(weight, index, slope, out, token if norm else None, pair)
    exact = torch.zeros(n, d, dtype=torch.float64)
    doubles = None if pair is None else (x.double().cpu(), r.double().cpu())
    reference_rows.gather_rows(weight.double().cpu(), index.cpu(), slope.double().cpu(), exact, token.cpu(), doubles)
    eps = torch.finfo(dtype).eps
    assert float((out.cpu().double() - exact).abs().sum()) <= 8 * eps * float(exact.abs().sum()) * (1 + x.abs().max())


def test_numpy_arrays_serve_as_well():
    given = attention_arguments(4, 2, 5, 9, True)
    out = torch.zeros(4, 4, 5, 9, dtype=torch.float64)
    attention_blocks(**given, out=out, columns=[4] * 4, diagonal=range(4))
    arrays = {k: tuple(p.numpy() for p in v) if isinstance(v, tuple) else v.numpy() for k, v in given.items()}
    other = np.zeros(out.shape)
    attention_blocks(**arrays, out=other, columns=[4] * 4, diagonal=range(4))
    assert np.array_equal(out.numpy(), other)


def wrong(**changes):
    given = attention_arguments(4, 2, 5, 9, True)
    out = torch.zeros(4, 4, 5, 9, dtype=torch.float64)
    arguments = {**given, "out": out, "columns": [1, 2, 3, 4], "diagonal": [0, 1, 2, 3]}
    return arguments | {key: change(arguments.get(key)) for key, change in changes.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vo": lambda vo: vo.float()}, r"vo: expected float64 as a \(float64, cpu\), got float32"),
        ({"a": lambda a: a.half()}, "a: expected float32 or float64, got float16"),
        ({"a": lambda a: a[0]}, r"a: expected \(rows, heads, tokens\), got shape \(2, 4\)"),
        ({"k": lambda k: k[:, :, :8]}, r"k: expected shape \(4, 2, 9\), got \(4, 2, 8\)"),
        ({"p": lambda p: p.mT.contiguous().mT}, "p: its last axis must be contiguous"),
        ({"out": lambda out: out.mT.contiguous().mT}, "out: its last axis must be contiguous"),
        ({"out": lambda out: out[:3]}, r"out: expected shape \(4, 4, 5, 9\), got \(3, 4, 5, 9\)"),
        ({"q": lambda q: q.numpy()}, "q: expected a torch.Tensor like a .*, got a numpy.ndarray"),
        ({"vo": lambda vo: [1.0]}, "vo: expected a torch.Tensor like a .*, got a builtins.list"),
        ({"columns": lambda _: [1, 2, 3, 9]}, r"columns: expected indices in \[0, 5\)"),
        ({"diagonal": lambda _: [0, 1, 2]}, "diagonal: expected 4 integers"),
        ({"first": lambda _: [0, 1, 3, 6]}, "out: expected at least 10 blocks"),
        ({"first": lambda _: [0, 1, -3, 6], "out": lambda out: out.reshape(-1, 5, 9)}, "first: expected indices"),
        (
            {"first": lambda _: [0, 1, 2, 6], "out": lambda out: out.reshape(-1, 5, 9)},
            "first: .* that no two rows share",
        ),
        ({"first": lambda _: [0, 1], "out": lambda out: out.reshape(-1, 5, 9)}, "first: expected 4 indices"),
        ({"out": lambda out: out[:, :1].expand(4, 4, 5, 9)}, "out: entries overlap"),
        ({"q": lambda _: None}, "q: expected a torch.Tensor like a .*, got a builtins.NoneType"),
        ({"vo": lambda _: None}, "vo: expected a torch.Tensor like a .*, got a builtins.NoneType"),
        (
            {"q": lambda q: q, "out": lambda out: out, "p": lambda p: torch.complex(p, p).conj().imag},
            "p: .* negation|p: its last axis",
        ),
        (
            {"first": lambda _: [0.0, 1.5, 3.0, 6.0], "out": lambda out: out.reshape(-1, 5, 9)},
            "first: expected 4 indices",
        ),
        ({"norm": lambda norm: norm[:3]}, "norm: expected px, kx, qx, x̂ and r together"),
        ({"norm": lambda norm: (*norm[:4], None)}, "norm: expected px, kx, qx, x̂ and r together"),
        ({"norm": lambda norm: (*norm[:4], norm[4][:3])}, r"r: expected shape \(4,\), got \(3,\)"),
        ({"threads": lambda _: 0}, "threads: expected at least 1, got 0"),
        ({"stream": lambda _: 1}, "stream: expected None for arrays on cpu"),
        ({"vo": lambda vo: vo.to("meta")}, "vo: expected it on cpu as a .*, got meta"),
    ],
)
def test_wrong_arguments_are_named_before_native_code_runs(changes, message):
    with pytest.raises(InputError, match=message):
        attention_blocks(**wrong(**changes))


def test_wrong_rows_are_named():
    weight = torch.randn(5, 4)
    out = torch.empty(2, 4)
    with pytest.raises(InputError, match=r"index: expected indices in \[0, 5\), got 0 .. 5"):
        gather_rows(weight, torch.tensor([0, 5]), None, out)
    with pytest.raises(InputError, match="token: expected one for each row"):
        gather_rows(weight, torch.tensor([0, 1]), None, out, token=torch.tensor([0, 0]))
    with pytest.raises(InputError, match=r"r: expected shape \(1,\), got \(4,\)"):
        gather_rows(weight, torch.tensor([0, 1]), None, out, torch.tensor([0, 0]), (weight[:1], weight[0]))
    with pytest.raises(InputError, match="norm: expected x̂ and r together"):
        gather_rows(weight, torch.tensor([0, 1]), None, out, torch.tensor([0, 0]), (weight[:1], None))
    with pytest.raises(InputError, match=r"x: expected a torch\.Tensor like weight .*, got a numpy\.ndarray"):
        gather_rows(weight, torch.tensor([0, 1]), None, out, torch.tensor([0, 0]), (weight[:1].numpy(), weight[0, :1]))
    with pytest.raises(InputError, match="weight: shares memory with out"):
        gather_rows(weight, torch.tensor([4, 3, 2, 1, 0]), None, weight)
    fixed = np.zeros((2, 4), dtype=np.float32)
    fixed.flags.writeable = False
    with pytest.raises(InputError, match="out: expected an array that can be written to"):
        gather_rows(weight.numpy(), np.array([0, 1]), None, fixed)
    with pytest.raises(InputError, match="weight: expected an array of NumPy, torch or CuPy, got list"):
        gather_rows([1.0], torch.tensor([0]), None, out)


def test_running_out_of_memory_is_an_exception():
    """So many tokens of the smallest kind that the scratch cannot be had: an error, and the process lives."""
    rows, T = 1, 2**44
    a = np.lib.stride_tricks.as_strided(np.zeros(1), (rows, 1, T), (0, 0, 0))
    one = np.zeros((1, 1, 1))
    wide = np.lib.stride_tricks.as_strided(np.zeros(1), (1, 1, T), (0, 0, 0))
    with pytest.raises((MemoryError, RuntimeError)):
        attention_blocks(
            a, wide, one, one, one, one, one, np.zeros((1, 1, 1)), columns=[1], diagonal=[0], first=[0], threads=1
        )


def test_the_native_kernels_are_there():
    if os.environ.get(native.SWITCH) == "reference":
        pytest.skip("the reference was asked for")
    assert native.extension is not None, "the installation has no native kernels"
    assert diagnosis()["kernels"] == native.description()


@pytest.mark.skipif(native.extension is None, reason="no compiled kernels")
def test_the_stub_names_what_the_extension_has():
    stub = ast.parse((Path(tp.__file__).parent / "kernels" / "_native.pyi").read_text())
    named = {node.name for node in stub.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    named |= {node.target.id for node in stub.body if isinstance(node, ast.AnnAssign)}
    assert named == {name for name in dir(native.extension) if not name.startswith("_")}


def in_a_process(program, folder, environment=None):
    """Runs Python code away from the checkout, which would be imported instead of the installed package."""
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa, tmp_path):
    """The attention tests once more with a narrower instruction set, in a process of its own."""
    program = (
        "from tightpass.kernels import native; import test_kernels as t\n"
        "print(native.extension.instruction_set())\n"
        "for size in t.SIZES:\n"
        "    for dtype in t.DTYPES: t.test_attention_blocks(size, True, True, dtype, 'cpu')\n"
    )
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"TIGHTPASS_ISA": isa, "PYTHONPATH": os.pathsep.join(paths)}
    done = in_a_process(program, tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in {"baseline": {"baseline"}, "avx2": {"baseline", "avx2"}}.get(
        isa, {"baseline", "avx2", isa}
    )


def test_the_reference_takes_over_where_it_is_asked_for(tmp_path):
    program = (
        "import torch, tightpass.kernels.native as n; from tightpass.kernels.rows import gather_rows\n"
        "assert n.extension is None; weight, out = torch.eye(3), torch.empty(2, 3)\n"
        "assert torch.equal(gather_rows(weight, [2, 0], None, out), weight[[2, 0]])\n"
        "print(n.description())"
    )
    environment = os.environ | {native.SWITCH: "reference"}
    done = in_a_process(program, tmp_path, environment)
    assert done.stdout.startswith("reference"), done.stderr


class Without:
    """The real extension, less one of its operations."""

    def __init__(self, missing):
        self.missing = missing

    def __getattr__(self, name):
        if name == self.missing:
            raise AttributeError(name)
        return getattr(REAL, name)


REAL = native.extension
CALLS = {
    "gather_rows_float32": lambda: gather_rows(torch.ones(2, 3), [0], None, torch.empty(1, 3)),
    "product_float64": lambda: product(np.ones((5, 7)), np.ones((7, 2))),
    "two_stage_float64": lambda: tp.svdvals(np.eye(5)),
    "two_stage_float32": lambda: tp.svdvals(np.eye(500, dtype=np.float32), overwrite=True),
    "sturm_counts_float64": lambda: sturm_counts(np.ones(3), np.zeros(2), np.ones(1)),
}


@pytest.mark.skipif(native.extension is None, reason="no compiled kernels")
@pytest.mark.parametrize("operation", CALLS)
def test_an_operation_that_the_extension_lacks_is_an_error(operation, monkeypatch):
    """A library of another version, while `doctor` says that kernels are native."""
    name, _, dtype = operation.rpartition("_")
    monkeypatch.setattr(native, "extension", Without(f"cpu_{operation}"))
    with pytest.raises(InstallationError, match=f"lack {name} in {dtype}.*\n.*Install it anew"):
        CALLS[operation]()
    monkeypatch.setattr(native, "extension", None)
    CALLS[operation]()


def test_a_broken_extension_raises(tmp_path):
    """An extension that is there and cannot be loaded is an error, not a fallback."""
    broken = tmp_path / f"_native{Path(native.extension.__file__).name.removeprefix('_native')}"
    broken.write_bytes(b"no library")
    program = f"import tightpass.kernels as k; k.__path__.insert(0, {str(tmp_path)!r})\nimport tightpass.kernels.native"
    done = in_a_process(program, tmp_path)
    assert done.returncode != 0
    assert "ImportError" in done.stderr


def cuda_code(path: Path) -> set[tuple[str, int]]:
    """Kinds and architectures in a shared object's fat binaries: magic, then entries (kind, header, size, arch)."""
    data, found, at = path.read_bytes(), set(), 0
    while (at := data.find(struct.pack("<I", 0xBA55ED50), at)) >= 0:
        header, size = struct.unpack_from("<HQ", data, at + 6)
        entry, end = at + header, at + header + size
        while entry < end:
            kind, _, length, body = struct.unpack_from("<HHIQ", data, entry)
            arch = struct.unpack_from("<I", data, entry + 28)[0]
            found.add(({1: "ptx", 2: "elf"}.get(kind, str(kind)), arch))
            entry += length + body
        at += 4
    return found


def test_the_extension_holds_code_for_the_gpus():
    """sm_80 and sm_90 code and PTX, wherever nvcc was there to make it."""
    if native.extension is None or not native.extension.cuda_built():
        pytest.skip("built without CUDA")
    found = cuda_code(Path(native.extension.__file__))
    assert {("elf", 80), ("elf", 90), ("ptx", 90)} <= found


def test_without_a_gpu_cuda_calls_say_what_is_missing():
    if torch.cuda.is_available() or native.extension is None:
        pytest.skip("a GPU is there")
    given = dict.fromkeys(("weight", "out"), (0, (1, 1), (1, 1))) | dict.fromkeys(("slope", "token", "x", "r"))
    with pytest.raises(RuntimeError, match=r"built without CUDA|no GPU is current|not to be had"):
        native.extension.cuda_gather_rows_float32(given | {"index": (0, (1,), (1,))}, 0, 0)
