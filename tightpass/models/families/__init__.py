"""All families: importing them here makes them known."""

from tightpass.models.families import (
    bert,
    cohere,
    gemma,
    gpt2,
    gpt_neo,
    gpt_neox,
    gptj,
    granite,
    llama,
    olmo2,
    opt,
    phi,
    stablelm,
    starcoder2,
)

__all__ = [
    "bert",
    "cohere",
    "gemma",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "granite",
    "llama",
    "olmo2",
    "opt",
    "phi",
    "stablelm",
    "starcoder2",
]
