"""Images and sounds as inputs: given, drawn, read from a file; and what is refused."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
import torch
from commands import call
from oracles.encoder_models import IDS, config_of, made
from PIL import Image

import tightpass as tp
from tightpass.models import images
from tightpass.models.inputs import Given, read_input
from tightpass.models.signal import Signal


def drawn(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def directory(tmp_path):
    """Of a model that reads images of 9 × 9 pixels."""
    made("clip-vision").save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.fixture
def picture(tmp_path):
    """A file of 20 × 13 pixels."""
    levels = np.random.default_rng(0).integers(0, 256, (13, 20, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "seen.png")
    return tmp_path / "seen.png"


# ---- given


def test_pixels_and_features_reach_the_layers():
    """x of the first layer is the embedding of what was given, by the model's own code."""
    vit, values = made("vit"), drawn(2, 6, 9)
    block = tp.block(tp.load_model(vit), "layer", 0, pixel_values=values)
    with torch.no_grad():
        assert torch.equal(block.x, vit.embeddings(values[None])[0])
    for same in (values[None], values.numpy()):
        assert torch.equal(tp.block(tp.load_model(vit), "layer", 0, pixel_values=same).x, block.x)
    sound = drawn(5, 12)
    whisper = made("whisper").encoder
    block = tp.block(tp.load_model(whisper), "layer", 0, input_features=sound)
    with torch.no_grad():
        hidden = torch.nn.functional.gelu(whisper.conv1(sound[None]))
        hidden = torch.nn.functional.gelu(whisper.conv2(hidden)).mT + whisper.embed_positions.weight
    assert torch.allclose(block.x, hidden[0], rtol=1e-13, atol=1e-14)


def test_without_an_input_it_is_drawn_by_the_seed():
    model = tp.load_model(made("vit"))
    one, again, other = (tp.block(model, "mlp", 0, seed=seed).x for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_dinov2_takes_other_sizes():
    model = tp.load_model(made("dinov2"))
    assert tp.block(model, "attn", 1, pixel_values=drawn(3, 8, 13)).tokens == 2 * 3 + 1
    with pytest.raises(
        tp.InputError, match=r"expected shape \(3, height, width\) of at least 4 × 4 pixels, got \(3, 3, 9"
    ):
        tp.block(model, "attn", 1, pixel_values=drawn(3, 3, 9))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit", {"pixel_values": drawn(2, 9, 6)}, r"expected shape \(2, 6, 9\), got \(2, 9, 6\)"),
        ("vit", {"pixel_values": drawn(2, 2, 6, 9)}, r"expected shape \(2, 6, 9\), got \(2, 2, 6, 9\)"),
        ("vit", {"pixel_values": torch.ones(2, 6, 9, dtype=torch.uint8)}, "must be a tensor of floating numbers"),
        ("vit", {"pixel_values": "cat.png"}, "pixel_values must be a tensor or an array, got 'cat.png'"),
        ("vit", {"pixel_values": drawn(2, 6, 9) / 0}, "has NaN or infinity in it"),
        ("vit", {"input_features": drawn(5, 12)}, "reads pixel_values, and has no use for input_features"),
        ("vit", {"token_ids": IDS}, "reads pixel_values, not text; leave out token_ids, and give pixel_values"),
        ("vit", {"text": "a cat"}, "leave out text"),
        ("vit", {"tokens": 64}, "makes 7 tokens of this image, 64 were asked for; leave tokens out"),
        ("vit", {"pixel_values": drawn(2, 6, 9), "input_features": drawn(5, 12)}, "not both"),
        ("whisper", {"input_features": drawn(5, 11)}, r"expected shape \(5, 12\), got \(5, 11\)"),
        ("whisper", {"tokens": 5}, "makes 6 tokens of this sound, 5 were asked for"),
        ("roberta", {"pixel_values": drawn(2, 6, 9)}, "reads text, and has no use for pixel_values"),
    ],
)
def test_what_is_no_input_of_the_model_is_refused(name, options, message):
    with pytest.raises(tp.InputError, match=message):
        tp.block(tp.load_model(made(name)), "mlp", 0, **options)


# ---- files


def test_an_image_is_resized_and_scaled(picture):
    signal = Signal("pixel_values", (3, 4, 5), (2, 2))
    values, words = images.pixels_of(str(picture), signal, None)
    assert words == "image seen.png (20 × 13) resized to 5 × 4, scaled to [-1, 1]"
    with Image.open(picture) as image:
        levels = np.asarray(image.resize((5, 4), Image.Resampling.BICUBIC), dtype=np.float64)
    assert np.array_equal(values.numpy(), (levels / 255 * 2 - 1).transpose(2, 0, 1))


def test_a_mean_beside_the_model_is_used_where_its_processor_cannot_be(picture, tmp_path):
    said = {"image_processor_type": "NoSuchProcessor", "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.25, 1.0]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    signal = Signal("pixel_values", (3, 13, 20), (2, 2))
    values, words = images.pixels_of(str(picture), signal, str(tmp_path))
    assert words.endswith("resized to 20 × 13, scaled by the mean and spread of preprocessor_config.json")
    levels = np.asarray(Image.open(picture), dtype=np.float64) / 255
    expected = (levels - said["image_mean"]) / said["image_std"]
    assert np.allclose(values.numpy(), expected.transpose(2, 0, 1), rtol=1e-14, atol=1e-15)


def test_the_models_own_processor_is_used(picture, directory):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    own = CLIPImageProcessorPil(size={"shortest_edge": 9}, crop_size={"height": 9, "width": 9})
    own.save_pretrained(directory)
    read = read_input(tp.load_model(directory).shape, Given(image=str(picture)), "clip", 0, str(directory))
    with Image.open(picture) as image:
        expected = own(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(read.signal, expected)
    assert read.origin.startswith("image seen.png (20 × 13) by the model's own CLIPImageProcessor")


@pytest.mark.parametrize(
    ("file", "message"),
    [(b"", "cannot be read as an image"), (b"no image", "cannot be read as an image"), (None, "there is no such file")],
)
def test_what_is_no_image_is_refused(tmp_path, file, message):
    path = tmp_path / "seen.png"
    if file is not None:
        path.write_bytes(file)
    with pytest.raises(tp.InputError, match=message):
        images.pixels_of(str(path), Signal("pixel_values", (3, 4, 5), (2, 2)), None)


def test_without_pillow_the_extra_is_named(picture, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(tp.InputError, match=r"pip install 'tightpass\[vision\]'"):
        images.pixels_of(str(picture), Signal("pixel_values", (3, 4, 5), (2, 2)), None)


# ---- runs


def test_a_run_of_an_image(directory, picture, tmp_path, capsys, monkeypatch):
    options = ["--model", directory, "--image", picture, "--layers", "1", "--out", tmp_path / "run"]
    code, out, err = call(capsys, monkeypatch, "run", *options)
    assert (code, err) == (0, "")
    assert "5 tokens" in out
    run = tp.open(tmp_path / "run")
    assert run.provenance["tokens"] == "image seen.png (20 × 13) resized to 9 × 9, scaled to [-1, 1]"
    assert run.token_ids == (-1,) * 5
    values, _ = images.pixels_of(str(picture), Signal("pixel_values", (3, 9, 9), (4, 4), 1), None)
    block = tp.block(tp.load_model(directory), "mlp", 1, pixel_values=values)
    assert np.allclose(run["L01.mlp"].values, tp.spectrum(tp.jacobian(block)).values, rtol=1e-13)
    assert call(capsys, monkeypatch, "verify", tmp_path / "run")[0] == 0
    replayed = ["--config", tmp_path / "run" / "run.yaml", "--out", tmp_path / "run"]
    assert call(capsys, monkeypatch, "run", *replayed)[0] == 0  # the same question: nothing is left to do


def test_random_pixels_are_said(directory, tmp_path, capsys, monkeypatch):
    code, out, err = call(capsys, monkeypatch, "run", "--model", directory, "--layers", "0", "--out", tmp_path / "run")
    assert code == 0
    assert "gets random pixels (seed 0): no image was given; the numbers are those of no image" in err
    assert "Tokens are random pixels (seed 0): no image was given." in out


def test_other_pixels_into_the_same_directory_are_refused(directory, tmp_path):
    question = {"model": str(directory), "layers": "0", "out": str(tmp_path / "run")}
    first, other = drawn(3, 9, 9), drawn(3, 9, 9, seed=2)
    run = tp.run(**question, pixel_values=first)
    assert run.provenance["tokens"] == "given pixel_values"
    with pytest.raises(tp.InputError, match="choose another --out"):
        tp.run(**question, pixel_values=other)
    tp.run(**question | {"out": str(tmp_path / "other")}, pixel_values=other)
    assert tp.compare(tmp_path / "run", tmp_path / "other", force=True).unlike == (
        "given pixel_values and given pixel_values, which are not the same",
    )


def test_a_loaded_model_and_features(tmp_path):
    run = tp.run(made("whisper"), input_features=drawn(5, 12), layers="0", out=str(tmp_path / "run"))
    assert len(run.token_ids) == 6


def test_plans_know_how_many_tokens_there_are(directory):
    assert tp.plan(str(directory), block="attn").shape == (5 * 12, 5 * 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "64"], "makes 5 tokens of this image, 64 were asked for; leave tokens out"),
        (["--text", "a cat"], "reads pixel_values, not text; leave out text"),
        (["--image", "nothing.png"], "nothing.png.: there is no such file"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_loaded(directory, capsys, monkeypatch, options, message):
    code, _, err = call(capsys, monkeypatch, "run", "--model", directory, *options)
    assert code == 2
    assert err.count("\n") <= 2
    assert re.search(message, err)


def test_an_image_for_a_model_of_texts_is_refused(capsys, monkeypatch, picture):
    code, _, err = call(capsys, monkeypatch, "run", "--image", picture)
    assert code == 2
    assert "demo reads text, and has no use for an image" in err


def test_configurations_of_no_size_are_refused(tmp_path):
    config = config_of("clip-vision").to_dict() | {"patch_size": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(tp.InputError, match="cannot read the model"):
        tp.load_model(tmp_path, weights="random")
