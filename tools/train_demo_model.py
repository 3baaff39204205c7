"""Train the bundled demo model: a small OPT on the text every Python carries.

    python tools/train_demo_model.py --out tightpass/models/demo

The text is the standard library of the Python that runs this script: sources,
docstrings once more as prose, and `pydoc_data`. Nothing of it is committed. The run
is seeded; 2 cores need about three quarters of an hour. The script writes the
model in Hugging Face format and a card with the figures it measured: held-out bits per
byte beside those of smoothed unigram and bigram models over the same tokens.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import json
import math
import platform
import sysconfig
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import OPTConfig, OPTForCausalLM

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # OPT's ids 0..3; </s> opens every document
OPENING = SPECIAL.index("</s>")
VOCABULARY = 2048
CONTEXT = 256
HELD_OUT_ONE_IN = 20
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def library_documents() -> list[tuple[str, str]]:
    """(name, text) of every document, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    documents = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if SKIPPED_FOLDERS & set(path.relative_to(root).parts) or name.startswith("encodings/"):
            continue
        if name == "pydoc_data/topics.py":
            continue
        try:
            source = path.read_text(encoding="utf-8")
            prose = docstrings(source)
        except (UnicodeDecodeError, SyntaxError):
            continue
        documents.append((name, source))
        if len(prose) > 400:
            documents.append((name, prose))
    topics = importlib.import_module("pydoc_data.topics").topics
    documents += [(f"pydoc_data/{name}", text) for name, text in sorted(topics.items())]
    return documents


def docstrings(source: str) -> str:
    """The docstrings of one source file, as running text."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds))
    return "\n\n".join(text for node in nodes if (text := ast.get_docstring(node)))


def is_held_out(name: str) -> bool:
    """Whole files are held out, by a hash of their name; docstrings go with their file."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % HELD_OUT_ONE_IN == 0


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Byte-level BPE that opens each text with </s>, as OPT's tokenizer does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", OPENING)])
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All documents as one stream of ids, each opened by </s>."""
    return np.concatenate([np.array(e.ids, dtype=np.int64) for e in tokenizer.encode_batch(texts)])


def ngram_bits(train: np.ndarray, held: np.ndarray, discount: float = 0.75) -> tuple[float, float]:
    """Total bits of `held` under add-one unigrams, and under absolutely discounted bigrams
    that fall back on them (Ney, Essen & Kneser 1994)."""
    unigram = np.bincount(train, minlength=VOCABULARY) + 1.0
    unigram /= unigram.sum()
    pairs = Counter(zip(train[:-1].tolist(), train[1:].tolist(), strict=True))
    totals = np.bincount(train[:-1], minlength=VOCABULARY)
    kinds = np.bincount([first for first, _ in pairs], minlength=VOCABULARY)
    bits = 0.0
    for first, second in zip(held[:-1].tolist(), held[1:].tolist(), strict=True):
        total = max(int(totals[first]), 1)
        seen = max(pairs.get((first, second), 0) - discount, 0.0) / total
        rest = discount * kinds[first] / total if totals[first] else 1.0
        bits -= math.log2(seen + rest * unigram[second])
    return float(-np.log2(unigram[held[1:]]).sum()), bits


@torch.no_grad()
def model_bits(model: OPTForCausalLM, held: np.ndarray) -> float:
    """Total bits of `held[1:]`; windows overlap by half so that every token has context."""
    stride, bits, done = CONTEXT // 2, 0.0, 1
    for start in range(0, len(held) - 1, stride):
        window = torch.from_numpy(held[start : start + CONTEXT])[None]
        if start + window.shape[1] <= done:
            break
        losses = torch.nn.functional.cross_entropy(model(window).logits[0, :-1], window[0, 1:], reduction="none")
        fresh = losses[done - start - 1 :]
        bits += float(fresh.sum()) / math.log(2)
        done = start + window.shape[1]
    return bits


@torch.no_grad()
def active_units(model: OPTForCausalLM, held: np.ndarray, tokens: int = 64) -> list[float]:
    """Mean number of active ReLU units a token, layer by layer."""
    seen: list[float] = []
    hooks = [
        layer.fc1.register_forward_hook(
            lambda _module, _args, out: seen.append(float((out > 0).sum(-1).float().mean()))
        )
        for layer in model.model.decoder.layers
    ]
    model(torch.from_numpy(held[:tokens])[None])
    for hook in hooks:
        hook.remove()
    return seen


def build_model() -> OPTForCausalLM:
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        word_embed_proj_dim=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        ffn_dim=512,
        max_position_embeddings=CONTEXT,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        bos_token_id=OPENING,
        eos_token_id=OPENING,
        pad_token_id=1,
        tie_word_embeddings=True,
    )
    model = OPTForCausalLM._from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    return model


def train(model: OPTForCausalLM, stream: np.ndarray, held: np.ndarray, args: argparse.Namespace) -> None:
    """AdamW, warm-up, cosine decay; windows drawn at random, each opened by </s>."""
    decayed = [p for p in model.parameters() if p.ndim == 2]
    plain = [p for p in model.parameters() if p.ndim != 2]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=args.rate,
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / 200, 0.02 + 0.49 * (1 + math.cos(math.pi * min(step / args.steps, 1)))),
    )
    rng = np.random.default_rng(args.seed)
    start = time.perf_counter()
    for step in range(args.steps):
        offsets = rng.integers(0, len(stream) - CONTEXT, size=args.batch)
        windows = np.stack([stream[o : o + CONTEXT] for o in offsets])
        windows[:, 0] = OPENING
        ids = torch.from_numpy(windows)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 250 == 0:
            units = " ".join(f"{u:.0f}" for u in active_units(model, held))
            print(
                f"step {step:5d}  {time.perf_counter() - start:6.0f} s  "
                f"loss {loss.item() / math.log(2):.3f} bits/token  active units {units}",
                flush=True,
            )


def save(model: OPTForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "</s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "model_max_length": CONTEXT,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def card(figures: dict[str, object], args: argparse.Namespace) -> str:
    return f"""# tightpass demo model

A small OPT (pre-norm, ReLU, learned positions, tied embeddings): 6 layers, width 128,
4 heads, 512 MLP units, {figures["parameters"]:,} parameters, {CONTEXT} positions, byte-level BPE
of {VOCABULARY} tokens. Weights are stored as float16. Licence: Apache-2.0.

It exists so that `tightpass run` has really trained weights to look at without a network:
only trained ReLU units are sparse, and sparse units are what makes a tight pass.
It is not a useful language model.

| | |
|---|---|
| trained on | standard library of Python {platform.python_version()}: sources, docstrings, `pydoc_data` |
| training tokens | {figures["train_tokens"]:,} ({figures["train_bytes"]:,} bytes), seen {figures["epochs"]:.1f} times |
| held out | 1 file in {HELD_OUT_ONE_IN}, chosen by a hash of its name: {figures["held_bytes"]:,} bytes |
| steps, batch, rate, seed | {args.steps}, {args.batch} x {CONTEXT}, {args.rate}, {args.seed} |
| time | {figures["seconds"]:.0f} s on {figures["threads"]} threads |
| **held-out bits per byte** | **{figures["model"]:.3f}** |
| smoothed bigram, same tokens | {figures["bigram"]:.3f} |
| smoothed unigram, same tokens | {figures["unigram"]:.3f} |
| active units a token, by layer | {figures["active"]} of 512 |

Made by `tools/train_demo_model.py`. Another version of Python has other sources and gives
another, similar model.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    documents = library_documents()
    train_texts = [text for name, text in documents if not is_held_out(name)]
    held_texts = [text for name, text in documents if is_held_out(name)]
    tokenizer = train_tokenizer(train_texts)
    stream, held = encode(tokenizer, train_texts), encode(tokenizer, held_texts)
    held_bytes = sum(len(text.encode()) for text in held_texts)
    unigram, bigram = (bits / held_bytes for bits in ngram_bits(stream, held))
    print(f"{len(stream):,} training tokens, {len(held):,} held out")
    print(f"held-out bits per byte: unigram {unigram:.3f}, bigram {bigram:.3f}", flush=True)

    model = build_model().train()
    start = time.perf_counter()
    train(model, stream, held, args)
    seconds = time.perf_counter() - start
    model.eval()
    model.half().float()  # judged with the weights as they are stored
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_tokens": len(stream),
        "train_bytes": sum(len(text.encode()) for text in train_texts),
        "held_bytes": held_bytes,
        "epochs": args.steps * args.batch * CONTEXT / len(stream),
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "model": model_bits(model, held) / held_bytes,
        "bigram": bigram,
        "unigram": unigram,
        "active": ", ".join(f"{u:.0f}" for u in active_units(model, held)),
    }
    print(json.dumps(figures, indent=2))
    save(model, tokenizer, args.out)
    (args.out / "README.md").write_text(card(figures, args))


if __name__ == "__main__":
    main()
