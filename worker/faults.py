"""Whose fault it is when a shard cannot be done. The shard's own faults are all other exceptions; they count."""

from __future__ import annotations


class JobFault(Exception):
    """The job cannot run on any worker: its model does not exist, its adapter does not fit."""


class SpecFault(JobFault):
    """The job's stored spec cannot be read: not by any worker, though one could when the job began."""


class WorkerFault(Exception):
    """This worker cannot run this job though another may: no network, another model under that name."""


class MachineFault(Exception):
    """This worker can run nothing for now: the disk is full, the results folder is away."""


class DeviceLost(MachineFault):
    """The accelerator is broken for this process; only a new one can use it again."""
