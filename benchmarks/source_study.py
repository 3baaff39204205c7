"""The original study's runs, repeated: OPT-125M, MLP and attention of every layer, 2 and 34 tokens.

    python benchmarks/source_study.py                       # with facebook/opt-125m at hand
    python benchmarks/source_study.py --model DIR           # a local copy
    python benchmarks/source_study.py --weights random      # times only

The study ("Searching for Modularity in Large Language Models") found about 1240 non-zero singular
values in the first layer's MLP with 2 tokens and about 9200 with 34, in 5 seconds and 20 minutes; its attention
showed no clear tight pass. Ranks of random weights mean nothing and are not printed.

Attention at 34 tokens is one dense 26112 x 26112 SVD a layer (about half an hour and 22 GiB each here), so
it is left out unless --attention-tokens 2,34 asks for it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from common import save

import tightpass as tp

STUDY = {2: {"rank": 1240, "seconds": 5}, 34: {"rank": 9200, "seconds": 20 * 60}}


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="opt-125m")
    parser.add_argument("--weights", default="pretrained", choices=["pretrained", "random"])
    parser.add_argument("--layers", default="all")
    parser.add_argument("--mlp-tokens", type=numbers, default=[2, 34])
    parser.add_argument("--attention-tokens", type=numbers, default=[2])
    parser.add_argument("--name", default="source_study", help="name of the file under results/")
    args = parser.parse_args()
    trained = args.weights == "pretrained"
    cases = []
    for block, counts in (("mlp", args.mlp_tokens), ("attn", args.attention_tokens)):
        for tokens in counts:
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                try:
                    run = tp.run(
                        args.model, block=block, tokens=tokens, layers=args.layers, weights=args.weights,
                        out=str(Path(folder) / "run"), discard_jacobian=True,
                    )  # fmt: skip
                except tp.TightpassError as error:
                    raise SystemExit(f"error: {error}") from None
                seconds = time.perf_counter() - start
            study = STUDY.get(tokens, {})
            case = {
                "block": block,
                "tokens": tokens,
                "layers": len(run.names),
                "seconds_all_layers": seconds,
                "seconds_a_layer": [sum(record.seconds.values()) for record in run.records],
                "study_seconds": study.get("seconds"),
            }
            if trained:
                case["ranks"] = [[s.name, *s.rank.interval, s.rank.flag, s.rank.confidence] for s in run.spectra]
                case["study_rank_first_layer"] = study.get("rank") if block == "mlp" else None
            cases.append(case)
            print(f"\n{block}, {tokens} tokens: {seconds:.1f} s for {len(run.names)} layers, loading included "
                  f"(study: {study.get('seconds', '–')} s)")  # fmt: skip
            if trained:
                print(run.table()[["rank_low", "rank_high", "flag", "confidence", "cliff_ratio"]].to_string())
                if block == "mlp" and study:
                    print(f"the study: about {study['rank']} in the first layer, far fewer in later ones")
            else:
                print("random weights: times only")
    save(args.name, {"model": args.model, "weights": args.weights, "cases": cases})


if __name__ == "__main__":
    main()
