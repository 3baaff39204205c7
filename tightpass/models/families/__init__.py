"""All families: importing them here makes them known."""

from tightpass.models.families import bert, opt

__all__ = ["bert", "opt"]
