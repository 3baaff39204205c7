"""The tokenizer of a GGUF file, built from its metadata."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tightpass.models.gguf_files import GGUF

CONTROL, DEFINED = 3, 4
"""Types of tokens that are whole in a text: those that are no text, and those that are."""
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    **dict.fromkeys(("gpt-2", "olmo", "mpt", "phi-2"), None),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), r"\p{N}"),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe"), LLAMA3),
    **dict.fromkeys(("qwen2", "stablelm2"), LLAMA3.replace("{1,3}", "")),
}
"""How texts are cut before pairs are merged, by the file's word for it: None as GPT-2 does, single digits first, or whole."""


def tokenizer_of(file: GGUF) -> Any | None:
    """The tokenizer, or None where the file has none, or one of a kind that is not built here."""
    from transformers import PreTrainedTokenizerFast

    build = BUILDERS.get(file.field("tokenizer.ggml.model", ""))
    built = None if build is None else build(file)
    if built is None:
        return None
    _add_whole(built, file)
    _add_ends(built, file)
    return PreTrainedTokenizerFast(tokenizer_object=built, **_special(file))


def untold(file: GGUF) -> str | None:
    """Why a file's tokenizer is not built, in words; None where there is nothing to build."""
    kind, cut = file.field("tokenizer.ggml.model"), file.field("tokenizer.ggml.pre")
    if kind is None:
        return None
    return f"its tokenizer ({kind}{f', {cut}' if cut else ''}) cannot be built from its metadata"


def _byte_level(file: GGUF) -> Any | None:
    """Pairs of bytes, merged in the order of the file."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    cut = file.field("tokenizer.ggml.pre")
    if cut not in SPLITS:
        return None
    merges = [tuple(merge.split(" ")) for merge in file.field("tokenizer.ggml.merges", [])]
    built = Tokenizer(models.BPE(vocab=_vocabulary(file), merges=merges))
    pattern = SPLITS[cut]
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern in (None, r"\p{N}"))]
    if pattern is not None:
        steps.insert(0, pre_tokenizers.Split(Regex(pattern), "isolated"))
    built.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if cut == "qwen2":
        built.normalizer = normalizers.NFC()
    built.decoder = decoders.ByteLevel()
    return built


def _pieces(file: GGUF) -> Any:
    """SentencePiece: pieces with scores, of which the best pair is merged first; bytes where there is no piece."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = _vocabulary(file)
    scores = dict(zip(file.field("tokenizer.ggml.tokens"), file.field("tokenizer.ggml.scores"), strict=True))
    unknown = _token(file, "unknown")
    built = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=_merges(vocabulary, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    )
    spaces: list[Any] = [normalizers.Replace(" ", "▁")]
    if file.field("tokenizer.ggml.add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend("▁"))
    built.normalizer = normalizers.Sequence(spaces)
    built.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return built


def _merges(vocabulary: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """The pairs that pieces are made of, that of the best piece first."""
    pairs = [
        (piece[:cut], piece[cut:])
        for piece in sorted(vocabulary, key=lambda piece: (-scores[piece], vocabulary[piece]))
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    return pairs


BUILDERS: dict[str, Callable[[GGUF], Any | None]] = {"gpt2": _byte_level, "llama": _pieces}
"""By the file's word for the kind."""


def _vocabulary(file: GGUF) -> dict[str, int]:
    tokens: Sequence[str] = file.field("tokenizer.ggml.tokens")
    return {token: index for index, token in enumerate(tokens)}


def _add_whole(built: Any, file: GGUF) -> None:
    """Tokens that are never cut."""
    from tokenizers import AddedToken

    kinds = zip(file.field("tokenizer.ggml.tokens"), file.field("tokenizer.ggml.token_type", []), strict=False)
    whole = [(token, kind) for token, kind in kinds if kind in (CONTROL, DEFINED)]
    built.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, kind in whole if kind == CONTROL])
    built.add_tokens([AddedToken(t, normalized=False, special=False) for t, kind in whole if kind == DEFINED])


def _add_ends(built: Any, file: GGUF) -> None:
    """What begins and ends every text, where the file says so (pieces begin by themselves)."""
    from tokenizers.processors import TemplateProcessing

    begins = file.field("tokenizer.ggml.add_bos_token", file.field("tokenizer.ggml.model") == "llama")
    ends = file.field("tokenizer.ggml.add_eos_token", False)
    first, last = (_token(file, "bos") if begins else None), (_token(file, "eos") if ends else None)
    if first or last:
        named = [token for token in dict.fromkeys((first, last)) if token]
        built.post_processor = TemplateProcessing(
            single=" ".join(filter(None, (first, "$A", last))),
            special_tokens=[(token, built.token_to_id(token)) for token in named],
        )


def _special(file: GGUF) -> dict[str, str]:
    named = {f"{short}_token": _token(file, name) for short, name in SPECIAL.items()}
    return {name: token for name, token in named.items() if token is not None}


SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown"}


def _token(file: GGUF, name: str) -> str | None:
    """The token that the file says is for something."""
    index = file.field(f"tokenizer.ggml.{name}_token_id")
    return None if index is None else str(file.field("tokenizer.ggml.tokens")[index])
