"""Closed forms and kernels against torch.func, bare products and the machine's own limits.

    python benchmarks/jacobian.py [--device cuda]

OPT-125M's shape, one layer, random weights: times only; every answer is compared in the same run.

attention   all blocks of the lower triangle into a buffer that is there, against torch.func.jacrev at its
            best chunk size and the roofline max(bytes / overwrite rate, FLOPs / GEMM rate)
mlp         forming all blocks against the products that they need; with few active units, the factored
            route against forming and decomposing the blocks
products    J·X of 64 columns against the weight products it needs and vmap(jvp) at its best chunk size; in a
            process of its own, since what the others leave of the heap moves vmap(jvp) by 40 %
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import fresh_process, gemm_rate, interleaved, peak_since_reset, reset_peak, save, seconds, summary, timed
from torch.func import jacrev, jvp, vmap
from transformers import OPTModel

import tightpass as tp
from tightpass.jacobians.forms.attention import ClosedAttention
from tightpass.jacobians.forms.mlp import ClosedMLP
from tightpass.models.sizes import opt_config
from tightpass.spectra.batched import factored_values
from tightpass.spectra.batched import one as verified_values
from tightpass.spectra.threads import one_per_core

WIDTH, HEADS = 768, 12


def make_block(kind: str, tokens: int, dtype: torch.dtype, device: str, active: float | None = None):
    """Layer 0 of OPT-125M's shape; the vocabulary is cut, since no block sees it.

    active   share of MLP units that are active, reached by lowering the biases
    """
    config = opt_config("125m")
    config.update({"num_hidden_layers": 1, "vocab_size": 1000})
    torch.manual_seed(0)
    model = OPTModel._from_config(config, dtype=dtype).eval()
    ids = [5 + i % 900 for i in range(tokens)]
    with torch.no_grad():  # trained weights are larger than freshly initialised ones
        for parameter in model.decoder.layers.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    loaded = tp.load_model(model, dtype=str(dtype).removeprefix("torch."), device=device)
    if active is not None:
        probe = tp.block(loaded, kind, layer=0, token_ids=ids)
        z = probe.unit_calls()[0].y
        with torch.no_grad():
            loaded.layers[0].fc1.bias -= torch.quantile(z.flatten()[::7].float(), 1 - active).to(dtype)
    return tp.block(loaded, kind, layer=0, token_ids=ids)


def packed(tokens: int) -> tuple[list[int], int]:
    """Index of each row's first block, and how many blocks there are."""
    first = [t * (t + 1) // 2 for t in range(tokens)]
    return first, tokens * (tokens + 1) // 2


def waiting(device: str, work: Callable[[], Any]) -> Callable[[], Any]:
    """The work, and on a GPU the wait for it."""
    if not device.startswith("cuda"):
        return work

    def until_done() -> Any:
        answer = work()
        torch.cuda.synchronize()
        return answer

    return until_done


def attention_form(block) -> ClosedAttention:
    form = tp.jacobian(block).form
    if not isinstance(form, ClosedAttention):
        raise RuntimeError("the block did not take its closed form")
    return form


def write_all(form: ClosedAttention, out: torch.Tensor) -> torch.Tensor:
    """All blocks, pieces included: a fresh form, so that nothing is remembered."""
    fresh = ClosedAttention(form.heads, form.norm, form.causal)
    return fresh.write(range(form.tokens), out, packed(form.tokens)[0])


def lower_blocks(J: torch.Tensor, tokens: int) -> torch.Tensor:
    """jacrev's (T, d, T, d) as packed blocks."""
    return torch.stack([J[t, :, s] for t in range(tokens) for s in range(t + 1)])


def attention_flops(tokens: int) -> float:
    """4·H·d² a block, and the query's term by tokens, 2·d²·H·(t + 1) a token (t < d_head)."""
    blocks = packed(tokens)[1]
    return 4.0 * HEADS * WIDTH**2 * blocks + 2.0 * WIDTH**2 * HEADS * blocks


def attention_case(tokens: int, device: str, rounds: int, chunks: list[int]) -> dict[str, Any]:
    block = make_block("attn", tokens, torch.float32, device)
    block64 = make_block("attn", tokens, torch.float64, device)
    form, form64 = attention_form(block), attention_form(block64)
    count = packed(tokens)[1]
    buffer = torch.zeros(count, WIDTH, WIDTH, device=device)
    buffer64 = torch.zeros(count, WIDTH, WIDTH, device=device, dtype=torch.float64)
    sweep = {}
    for chunk in chunks:
        sweep[chunk] = seconds(waiting(device, lambda c=chunk: jacrev(block.function(), chunk_size=c)(block.x)))
        print(f"  jacrev, {tokens} tokens, chunks of {chunk}: {sweep[chunk]:.2f} s", flush=True)
    best = min(sweep, key=sweep.__getitem__)
    expected = lower_blocks(jacrev(block.function(), chunk_size=best)(block.x), tokens)
    write_all(form, buffer)
    worst = float((buffer - expected).abs().max() / expected.abs().max())
    if worst > 1e-5:
        raise RuntimeError(f"{tokens} tokens: the closed form differs from jacrev by {worst:.1e}")
    del expected
    works = {
        "ours": lambda: write_all(form, buffer),
        "ours, fresh buffer": lambda: write_all(form, torch.empty(count, WIDTH, WIDTH, device=device)),
        "ours, float64": lambda: write_all(form64, buffer64),
        "overwrite": lambda: buffer.fill_(1.0),
    }
    times, _ = interleaved({n: waiting(device, w) for n, w in works.items()}, rounds)
    times["jacrev"] = summary(
        [seconds(waiting(device, lambda: jacrev(block.function(), chunk_size=best)(block.x))) for _ in range(2)]
        + [sweep[best]]
    )
    gemm = gemm_rate(torch.float32, device=device) * 1e9
    roof = max(times["overwrite"]["median"], attention_flops(tokens) / gemm)
    ours = times["ours"]["median"]
    return {
        "tokens": tokens,
        "seconds": times,
        "chunk_sweep": sweep,
        "worst_difference": worst,
        "bytes": buffer.nbytes,
        "flops": attention_flops(tokens),
        "gemm_gflops": gemm / 1e9,
        "roofline_seconds": roof,
        "share_of_roofline": roof / ours,
        "written_gb_per_s": buffer.nbytes / ours / 1e9,
        "times_faster_than_jacrev": times["jacrev"]["median"] / ours,
        "float64_over_float32": times["ours, float64"]["median"] / ours,
    }


def mlp_form(block) -> ClosedMLP:
    form = tp.jacobian(block).form
    if not isinstance(form, ClosedMLP):
        raise RuntimeError("the block did not take its closed form")
    return form


def mlp_case(tokens: int, dtype: torch.dtype, device: str, rounds: int) -> dict[str, Any]:
    """Forming all blocks against nothing but the products."""
    block = make_block("mlp", tokens, dtype, device)
    form = mlp_form(block)
    out = torch.zeros(tokens, WIDTH, WIDTH, dtype=dtype, device=device)
    pairs = [form.factors(t) for t in range(tokens)]

    def bare() -> torch.Tensor:
        for (C, B), to in zip(pairs, out, strict=True):
            torch.mm(C.T, B, out=to)
        return out

    def ours() -> torch.Tensor:
        return ClosedMLP(form.down, form.branches, form.norm).blocks(range(tokens), out)

    expected = bare().clone()
    worst = float((ours() - expected).abs().max() / expected.abs().max())
    if worst > 1e-6:
        raise RuntimeError(f"blocks differ by {worst:.1e}")
    truth = jacrev(block.function(slice(0, 1)))(block.x[:1])[0, :, 0]
    off = float((ours()[0] - truth).abs().max() / truth.abs().max())
    if off > 1e3 * torch.finfo(dtype).eps:
        raise RuntimeError(f"the first block differs from jacrev by {off:.1e}")
    times, _ = interleaved({"ours": waiting(device, ours), "bare products": waiting(device, bare)}, rounds)
    return {
        "tokens": tokens,
        "dtype": str(dtype),
        "active_units": float(np.mean([len(index) for index in form.active])),
        "seconds": times,
        "over_bare": times["ours"]["median"] / times["bare products"]["median"],
        "worst_difference": off,
        "bytes": out.nbytes,
    }


def factored_case(tokens: int, rounds: int) -> dict[str, Any]:
    """A tenth of the units active: cores against whole blocks, singular values and all, float64."""
    block = make_block("mlp", tokens, torch.float64, "cpu", active=0.1)
    form = mlp_form(block)
    truth = jacrev(block.function(slice(0, 1)))(block.x[:1])[0, :, 0]
    if float((form.blocks(range(1))[0] - truth).abs().max() / truth.abs().max()) > 1e-12:
        raise RuntimeError("the first block differs from jacrev")
    out = torch.zeros(tokens, WIDTH, WIDTH, dtype=torch.float64)

    def whole() -> np.ndarray:
        return np.concatenate(one_per_core(verified_values, form.blocks(range(tokens), out).numpy()))

    def factored() -> np.ndarray:
        def of(t: int) -> np.ndarray:
            C, B = form.factors(t, threads=1)
            return factored_values(C.numpy(), B.numpy())

        return np.concatenate(one_per_core(of, range(tokens)))

    times, answers = interleaved({"whole blocks": whole, "factored": factored}, rounds)
    worst = float(np.abs(answers["whole blocks"] - answers["factored"]).max() / answers["factored"].max())
    if worst > 1e-12:
        raise RuntimeError(f"the two routes differ by {worst:.1e}")
    return {
        "tokens": tokens,
        "active_units": float(np.mean([len(index) for index in form.active])),
        "seconds": times,
        "times_faster": times["whole blocks"]["median"] / times["factored"]["median"],
        "worst_difference": worst,
        "exact_zeros": int((answers["factored"] == 0).sum()),
    }


def product_case(tokens: int, columns: int, device: str, rounds: int) -> dict[str, Any]:
    """J·X by the closed form, by its bare weight products, and by vmap(jvp)."""
    block = make_block("attn", tokens, torch.float32, device)
    J = tp.jacobian(block)
    attention_form(block)
    f = block.function()
    X = torch.randn(J.shape[1], columns, device=device)
    tangents = X.T.reshape(columns, tokens, WIDTH).contiguous()
    weights = [torch.randn(WIDTH, WIDTH, device=device) for _ in range(4)]
    flat = tangents.reshape(-1, WIDTH)

    def automatic(chunk: int) -> torch.Tensor:
        push = vmap(lambda v: jvp(f, (block.x,), (v,))[1])
        return torch.cat([push(part) for part in tangents.split(chunk)])

    sweep = {c: timed(waiting(device, lambda c=c: automatic(c)), 2)["median"] for c in (1, 2, 4, 8, 16, 64)}
    best = min(sweep, key=sweep.__getitem__)
    works = {
        "ours": lambda: J @ X,
        "bare weight products": lambda: [flat @ W for W in weights],
        "vmap(jvp)": lambda: automatic(best),
        "ours, transposed": lambda: J.T @ X,
    }
    times, answers = interleaved({n: waiting(device, w) for n, w in works.items()}, rounds)
    expected = answers["vmap(jvp)"].reshape(columns, -1).T
    worst = float((answers["ours"] - expected).abs().max() / expected.abs().max())
    if worst > 1e-4:
        raise RuntimeError(f"J·X differs from vmap(jvp) by {worst:.1e}")
    return {
        "tokens": tokens,
        "columns": columns,
        "seconds": times,
        "chunk_sweep": sweep,
        "over_bare": times["ours"]["median"] / times["bare weight products"]["median"],
        "times_faster_than_vmap_jvp": times["vmap(jvp)"]["median"] / times["ours"]["median"],
        "worst_difference": worst,
    }


def memory_of(what: str) -> dict[str, float]:
    """Bytes added at the peak of one route in this fresh process, beside those that it must write."""
    kind, tokens, columns = {"attention": ("attn", 34, 0), "mlp": ("mlp", 34, 0), "products": ("attn", 256, 64)}[what]
    block = make_block(kind, tokens, torch.float32, "cpu")
    J = tp.jacobian(block)
    X = torch.randn(J.shape[1], max(columns, 1))
    before = reset_peak()
    if what == "products":
        written = (J @ X).nbytes
    elif what == "mlp":
        written = mlp_form(block).blocks(range(tokens)).nbytes
    else:
        written = write_all(J.form, torch.empty(packed(tokens)[1], WIDTH, WIDTH)).nbytes
    return {"added": peak_since_reset() - before, "must_write": written}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-of")
    parser.add_argument("--products", action="store_true", help="that case alone, as one JSON document")
    args = parser.parse_args()
    if args.products:
        print(json.dumps(product_case(256, 64, args.device, args.rounds)))
        return
    if args.memory_of:
        print(json.dumps(memory_of(args.memory_of)))
        return
    device = args.device
    document: dict[str, Any] = {"shape": "opt-125m, one layer, random weights", "device": device}
    document["attention"] = [
        attention_case(12, device, args.rounds, [64, 128, 256, 512, 1024]),
        attention_case(34, device, args.rounds, [64, 256, 1024]),
    ]
    for case in document["attention"]:
        print({k: v for k, v in case.items() if isinstance(v, float)}, flush=True)
    document["mlp"] = [mlp_case(34, dtype, device, args.rounds) for dtype in (torch.float32, torch.float64)]
    document["factored"] = factored_case(34, args.rounds)
    document["products"] = fresh_process(__file__, "--products", "--device", device, "--rounds", str(args.rounds))
    for case in [*document["mlp"], document["factored"], document["products"]]:
        print({k: v for k, v in case.items() if isinstance(v, float)}, flush=True)
    if device == "cpu":
        document["memory"] = {
            what: fresh_process(__file__, "--memory-of", what) for what in ("attention", "mlp", "products")
        }
        print(document["memory"])
    save("jacobian" if device == "cpu" else "jacobian_gpu", document)


if __name__ == "__main__":
    main()
