"""The worked examples, run as the README says, and the loss of one of them held against its formula."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.docs.conftest import ROOT

EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.timeout(600)  # each is minutes long where others use the cores as well


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    return done.stdout


def module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_a_checkpoint_sweep(home: Path) -> None:
    run("bash", str(EXAMPLES / "sweep.sh"), "sweep")
    page = (home / "sweep" / "report.html").read_text()
    assert page.count("<svg") >= 4
    figures = json.loads(run("seqproc", "report", "step-0", "step-2", "step-4", "step-8", "--json"))
    accuracies = [job["accuracy"][0] for job in figures]
    assert accuracies[-1] > accuracies[0] + 0.03, "training shows"
    assert all(job["name"] in page for job in figures)


def test_a_gradient_step_on_rollouts(home: Path) -> None:
    told = run("python", str(EXAMPLES / "grpo.py"), "policy", "1").splitlines()
    assert [line.split(":")[0] for line in told] == ["step-0 on test", "step 1", "step-1 on test"]
    before, after = ((home / "policy" / f"step-{n}" / "adapter_model.safetensors").read_bytes() for n in (0, 1))
    assert before != after


def test_the_loss_is_grpos() -> None:
    """At the policy that sampled the ratio is 1 and the gradient that of −A · log p; beyond the clip there is none."""
    grpo = module("grpo")
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    expected = (rewards.numpy() - rewards.numpy().mean(1, keepdims=True)) / rewards.numpy().std(
        1, ddof=1, keepdims=True
    )
    np.testing.assert_allclose(grpo.advantages(rewards).numpy(), expected, rtol=1e-4)
    assert grpo.advantages(torch.ones(1, 4)).abs().max() == 0, "nothing to learn where all are alike"

    old = torch.tensor([-1.0, -2.0, -0.5])
    for advantage in (torch.tensor(0.7), torch.tensor(-0.7)):
        new = old.clone().requires_grad_()
        loss = grpo.loss_of(new, old, advantage)
        (gradient,) = torch.autograd.grad(loss, new)
        assert loss.item() == pytest.approx(-advantage.item())
        np.testing.assert_allclose(gradient.numpy(), -advantage.item() / 3, rtol=1e-6)

    far = (old + torch.tensor([0.3, -0.3, 0.0])).requires_grad_()  # ratios 1.35, 0.74, 1
    (gradient,) = torch.autograd.grad(grpo.loss_of(far, old, torch.tensor(1.0)), far)
    np.testing.assert_allclose(gradient.numpy(), [0.0, -np.exp(-0.3) / 3, -1 / 3], rtol=1e-5)
    far = far.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(grpo.loss_of(far, old, torch.tensor(-1.0)), far)
    np.testing.assert_allclose(gradient.numpy(), [np.exp(0.3) / 3, 0.0, 1 / 3], rtol=1e-5)
