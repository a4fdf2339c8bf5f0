"""Rewards: functions by name that judge a sequence, and the processes in which they run.

    from jobs.rewards import reward

    @reward("short")
    def short(row):
        return len(row["response_ids"]) <= 50

A function gets a row, the columns of a shard's file as a dict, and returns a number, a bool, or None for what it could
not judge. None stays None everywhere, and is counted; so does what raises, hangs, or takes its process along.
"""

from __future__ import annotations

from jobs.rewards.registry import Reward, installed, named, reward

__all__ = ["Reward", "installed", "named", "reward"]
