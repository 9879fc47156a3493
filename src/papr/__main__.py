"""`python -m papr`."""

from papr.cli import main

main()
