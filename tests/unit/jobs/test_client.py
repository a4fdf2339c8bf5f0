"""What the client says to prompts that are no list of prompts, and to settings that say nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jobs import Client
from jobs.errors import SpecError
from jobs.settings import Settings


@pytest.mark.parametrize("prompts", ["2+3=", b"2+3=", {"prompt": ["2+3="]}, pd.DataFrame({"prompt": ["2+3="]})])
def test_prompts_must_be_a_list(tmp_path: Path, prompts: Any) -> None:
    with Client(Settings(home=tmp_path)) as client, pytest.raises(SpecError, match="give a list of prompts"):
        client.submit(model="tiny-arithmetic", prompts=prompts)


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEQPROC_HOME")
    unset = Settings.load().home
    monkeypatch.setenv("SEQPROC_HOME", "")
    assert Settings.load().home == unset
