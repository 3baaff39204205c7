"""`python -m tightpass`."""

from tightpass.cli import main

main()
