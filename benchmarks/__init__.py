"""Benchmarks of the batched core against the usual pattern and against the machine: see README.md beside this file."""
