"""Project metadata is in pyproject.toml; native extensions will be declared here."""

from setuptools import setup

setup()
