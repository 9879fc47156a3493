"""`python -m papr.cli`."""

from papr.cli import main

main()
