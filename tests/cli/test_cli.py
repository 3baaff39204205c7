"""The command as a user types it: in a process of its own, on real files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import tightpass as tp
from tightpass.cli import main
from tightpass.cli.options import with_options
from tightpass.memory import free_memory
from tightpass.runs.question import PYTHON_ONLY, Config, parse_layers
from tightpass.units import format_bytes, parse_bytes

COMMAND = Path(sys.executable).with_name("tightpass")


def tightpass(*arguments, cwd, text=None):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        input=text,
        check=False,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with one small finished run in `a`."""
    path = tmp_path_factory.mktemp("cli")
    done = tightpass("run", "--tokens", 5, "--layers", "1,3", "--out", "a", cwd=path)
    assert done.returncode == 0, done.stderr
    assert "L03.mlp" in done.stdout
    assert done.stderr == ""
    (path / "empty.txt").touch()
    (path / "blank.txt").write_text("\n  \n\t\n")
    return path


def test_show_verify_and_json(place):
    shown = tightpass("show", "a", cwd=place)
    assert shown.returncode == 0
    assert "certified" in shown.stdout
    csv = tightpass("show", "a", "--csv", cwd=place).stdout.splitlines()
    assert csv[0].startswith("job,rank_low,rank_high,flag,confidence,size,known,bound")
    assert len(csv) == 3
    verified = tightpass("verify", "a", cwd=place)
    assert verified.returncode == 0
    assert verified.stdout.count("checksums, ‖J‖_F², every singular value, ranks agree") == 2
    document = json.loads(tightpass("run", "--tokens", 5, "--layers", "1,3", "--out", "a", "--json", cwd=place).stdout)
    assert [job["job"] for job in document["jobs"]] == ["L01.mlp", "L03.mlp"]
    assert document["jobs"][0]["flag"] == "certified"
    assert document["jobs"][0]["floor"] == tp.open(place / "a")["L01.mlp"].floor.total  # to the last digit
    assert document["provenance"]["model"] == "demo"


def test_damage_is_exit_code_4(place):
    copy = place / "damaged"
    tightpass("run", "--tokens", 2, "--layers", "0", "--out", "damaged", cwd=place)
    shard = copy / "shards/L00.mlp.h5"
    shard.write_bytes(shard.read_bytes()[:5000])
    done = tightpass("verify", "damaged", cwd=place)
    assert done.returncode == 4
    assert done.stderr.startswith("error: ")


def test_plan_computes_nothing(place):
    done = tightpass(
        "plan", "--model", "opt-2.7b", "--block", "attn", "--tokens", 34, "--json", "--memory", "9TiB", cwd=place
    )
    planned = json.loads(done.stdout)
    assert planned["shape"] == [87040, 87040]
    assert planned["structure"] == "BlockLowerTriangular"
    assert len(planned["jobs"]) == 32
    assert planned["disk"] == 32 * (34 * 35 // 2 * 2560**2 + 34 * 2560) * 8
    assert not (place / "runs").exists()


def test_models_and_doctor(place):
    listed = tightpass("models", cwd=place).stdout
    assert "opt-66b" in listed
    assert re.search("in closed form: albert, bert, .*gemma2, .*llama, .*opt,", listed)
    assert "in closed form for attn and head: gpt_oss, mixtral, qwen3_moe\n" in listed
    assert "in closed form for mlp: qwen3_5_text\n" in listed
    assert "by automatic differentiation: bloom, deberta-v2," in listed
    assert "demo" in listed
    assert json.loads(tightpass("doctor", "--json", cwd=place).stdout)["torch"] != "not installed"


@pytest.mark.parametrize("command", ["doctor", "plan"])
@pytest.mark.parametrize("variable", ["TIGHTPASS_KERNELS", "TIGHTPASS_ISA"])
def test_a_variable_that_means_nothing_is_one_line(place, monkeypatch, command, variable):
    monkeypatch.setenv(variable, "foo")
    done = tightpass(command, cwd=place)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {variable} must be one of")
    assert "Traceback" not in done.stderr


def test_text_from_standard_input_and_yaml(place):
    text = "A different text, long enough for a few tokens of the demo model."
    done = tightpass(
        "run", "--text-file", "-", "--tokens", 4, "--layers", 0, "--out", "piped", "--json", cwd=place, text=text
    )
    assert done.returncode == 0, done.stderr
    (place / "q.yaml").write_text(yaml.safe_dump({"text": text, "tokens": 4, "layers": "0", "out": "yaml"}))
    same = tightpass("run", "--config", "q.yaml", "--json", cwd=place)
    first, second = (json.loads(d.stdout)["jobs"][0]["sigma_1"] for d in (done, same))
    assert first == second
    wins = tightpass("run", "--config", "q.yaml", "--tokens", 3, "--out", "wins", "--json", cwd=place)
    assert json.loads(wins.stdout)["question"]["tokens"] == 3


def test_random_weights_say_so(place):
    done = tightpass("run", "--weights", "random", "--tokens", 2, "--layers", 0, "--out", "random", cwd=place)
    assert "Weights are random (seed 0)" in done.stdout


BAD = [
    (["run", "--model", "opt-124m"], 2, "nearest known names: opt-125m"),
    (["run", "--model", "gpt2"], 2, "a Hub id such as openai-community/gpt2 (from the network, or its local cache)"),
    (["run", "--model", "facebook/opt-125m"], 2, "--weights random"),
    (["run", "--model", "opt-125m"], 2, "--model demo"),
    (["run", "--text", "too short", "--tokens", "64"], 2, "64 were asked for"),
    (["run", "--tokens", "300"], 2, "demo has 256 positions, 300 tokens"),
    (["run", "--tokens", "0"], 2, "tokens must be at least 1, got 0"),
    (["run", "--tokens", "-3"], 2, "tokens must be at least 1, got -3"),
    (["run", "--tokens", "many"], 2, "many"),
    (["run", "--text", ""], 2, "the text is empty"),
    (["run", "--layers", "6"], 2, "layers 0..5, got 6"),
    (["run", "--layers", "3-1"], 2, "runs upwards, got 3-1"),
    (["run", "--block", "layer", "--residual"], 2, "always contains its residuals"),
    (["run", "--out", "a/run.yaml"], 2, "is a file"),
    (["run", "--out", "a/run.yaml/b", "--layers", "0", "--tokens", "2"], 2, "a/run.yaml is a file"),
    (["run", "--out", "~nobody-of-that-name/x"], 2, "no such user"),
    (["run", "--seed", "99999999999999999999"], 2, "seed"),
    (["run", "--layers", "first"], 2, "layers must be all"),
    (["run", "--block", "ffn"], 2, "unknown block 'ffn'"),
    (["run", "--tokens", "4", "--out", "a"], 2, "another question"),
    (["run", "--dtype", "float16"], 2, "must be float64 or float32, got 'float16'"),
    (["run", "--memory", "100MiB"], 5, "MiB; the process and its model alone take 5"),
    (["run", "--method", "topk", "--tokens", "4", "--k", "513"], 2, "k must be at most 512, as many as J, 512 × 512"),
    (["plan", "--tokens", "4", "--vectors", "513"], 2, "vectors must be at most 512"),
    (["run", "--model", "a/run.yaml"], 2, "that is a file; give the directory"),
    (["run", "--memory", "lots"], 2, "memory must be a size"),
    (["plan", "--block", "attn", "--tokens", "200", "--memory", "1GiB"], 5, "MiB; fewer --tokens need less"),
    (["run", "--block", "head", "--head", "4"], 2, "heads 0..3, got 4"),
    (["run", "--block", "head", "--head", "-1"], 2, "layer 0 of demo has heads 0..3, got -1"),
    (["run", "--block", "head", "--head", "first"], 2, "head: expected a whole number, got 'first'"),
    *(
        (["run", "--block", kind, "--head", "1"], 2, f"got block `{kind}`")
        for kind in ("mlp", "attn", "layer", "model")
    ),
    (["run", "--text-file", "nowhere.txt"], 2, "cannot read nowhere.txt"),
    (["run", "--text", "x", "--text-file", "y"], 2, "not both"),
    (["run", "--config", "nowhere.yaml"], 2, "cannot read nowhere.yaml"),
    (["run", "--no-norm", "--residual"], 2, "needs the norm"),
    (["plan", "--no-norm", "--residual"], 2, "needs the norm"),
    (["plan", "--block", "layer", "--no-norm"], 2, "always contains its norms"),
    (["run", "--method", "density"], 2, "method must be one of auto, exact, topk"),
    (["run", "--k", "5"], 2, "k is how many values method topk finds"),
    (["run", "--method", "topk", "--k", "0"], 2, "k must be at least 1, got 0"),
    (["run", "--method", "topk", "--k", "4", "--vectors", "5"], 2, "vectors must be at most k = 4, got 5"),
    (["run", "--weights", "good"], 2, "weights must be one of"),
    (["run", "--device", "cuda:77"], 2, "torch sees"),
    (["run", "--colour", "red"], 2, "--colour"),
    (["show", "nowhere"], 2, "not a run directory"),
    (["verify", "nowhere"], 2, "not a run directory"),
    (["frobnicate"], 2, "frobnicate"),
    (["run", "--prompts", "empty.txt"], 2, "empty.txt has no prompt; write one a line"),
    (["run", "--prompts", "blank.txt"], 2, "blank.txt has no prompt; write one a line"),
    (["run", "--prompts", "nowhere.txt"], 2, "cannot read nowhere.txt: No such file or directory"),
    (["run", "--prompts", "a"], 2, "cannot read a: Is a directory"),
    (["plan", "--prompts", "blank.txt"], 2, "blank.txt has no prompt"),
    (["plan", "--tokens", "none"], 2, "tokens: expected a whole number, got 'none'"),
    (["plan", "--colour", "red"], 2, "--colour"),
    (["plan", "demo"], 2, "demo"),
    (["models", "--model", "demo"], 2, "--model"),
    (["models", "opt"], 2, "opt"),
    (["doctor", "--block"], 2, "--block"),
    (["doctor", "now"], 2, "now"),
    (["show"], 2, "DIR"),
    (
        [
            "plan",
            "--model",
            "opt-125m",
            "--weights",
            "random",
            "--block",
            "attn",
            "--tokens",
            "2000",
            "--memory",
            "900TiB",
        ],
        5,
        "on disk",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "code", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else None
)
def test_bad_input_gets_a_line_or_two_and_leaves_nothing(place, arguments, code, message, monkeypatch, capsys):
    before = sorted(place.rglob("*"))
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["tightpass", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    written = capsys.readouterr()
    assert stop.value.code == code
    assert message in written.err
    assert "Traceback" not in written.err
    assert 1 <= len(written.err.strip().splitlines()) <= 2
    if arguments[0] == "run":
        assert written.out == ""
    assert sorted(place.rglob("*")) == before


def test_interrupt_is_exit_code_3_and_is_continued(place):
    import signal
    import time

    arguments = [COMMAND, "run", "--tokens", "32", "--block", "attn", "--out", "stopped"]
    process = subprocess.Popen(
        arguments, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - ignored in the background
    )  # fmt: skip
    for _ in range(600):
        time.sleep(0.05)
        if list((place / "stopped").glob("shards/*.part")):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 3, errors
    assert "continues where this one stopped" in errors
    assert list((place / "stopped").glob("shards/*.part")) == []


def test_flags_are_the_fields_of_the_config():
    import inspect

    parameters = inspect.signature(with_options(lambda config, json: None)).parameters
    assert list(parameters) == [
        *(name for name in Config.model_fields if name not in PYTHON_ONLY),
        "config",
        "json",
        "debug",
    ]


@pytest.mark.parametrize(("text", "count"), [("4GiB", 2**32), ("500MB", 500_000_000), ("1.5 kib", 1536), ("7", 7)])
def test_sizes(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0", "4 giraffes", "1e3"])
def test_bad_sizes(text):
    with pytest.raises(tp.InputError, match="memory must be a size"):
        parse_bytes(text)


def test_free_memory_respects_the_control_group(tmp_path):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert free_memory(tmp_path) == 600000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) > 10**6
    assert free_memory(tmp_path / "absent") > 10**6
    assert format_bytes(3 * 2**30) == "3.0 GiB"


def test_layer_lists():
    assert parse_layers("0-2, 5", 6) == [0, 1, 2, 5]
    assert parse_layers("all", 3) == [0, 1, 2]


@pytest.mark.parametrize("options", [{"tokenz": 3}, {"tokens": "x"}, {"layers": None}])
def test_keywords_are_checked_by_name(options):
    with pytest.raises(tp.InputError, match=next(iter(options))):
        tp.run(**options)
