"""`python -m jobs` is `seqproc`."""

from jobs.cli import main

main()
