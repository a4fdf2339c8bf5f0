"""DistributedDataParallel over two gloo processes: gradients are the average over ranks."""

import dataclasses
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from sequence_processing import GenerationConfig, SequenceProcessor

from .support import given, make_model, make_tokenizer, naive_gradients

# Rank 0 has one row, rank 1 five: with tf_batch_size 2, one forward against three.
ROWS = [
    [[([5, 6], [7, 8, 9])]],
    [[([1, 2, 3], [4, 5])], [([3], [1, 2, 3, 4])], [([9, 9], [1])], [([8], [7, 7])], [([2, 4], [6])]],
]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def in_group(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        average_gradients(rank, folder)
        generate_apart(rank, folder)
        some_rank_has_none(rank)
    finally:
        dist.destroy_process_group()


def wrapped():
    model = DistributedDataParallel(make_model())
    return SequenceProcessor(model, make_tokenizer(), GenerationConfig(max_new_tokens=4)), model


def average_gradients(rank, folder):
    processor, model = wrapped()
    for step in range(2):  # DDP rebuilds its buckets after the first
        model.zero_grad()
        results = processor.teacher_force_logprobs(given(ROWS[rank]), with_grad=True, tf_batch_size=2)
        loss = sum(s for group in results.sequence_logprobs for s in group)
        loss = loss + 0.3 * sum(e.sum() for group in results.entropies for e in group)
        loss.backward()
        gradients = {name: p.grad for name, p in model.module.named_parameters()}
        torch.save(gradients, folder / f"gradients-{rank}-{step}.pt")


def generate_apart(rank, folder):
    processor, _ = wrapped()
    sequences, results = processor.generate_with_logprobs(["hi"], G=2, seed=0, with_grad=True)
    assert results.logprobs[0][0].requires_grad
    torch.save(sequences.sequences, folder / f"sequences-{rank}.pt")


def some_rank_has_none(rank):
    processor, _ = wrapped()
    with pytest.raises(ValueError, match="every rank needs at least one prompt"):
        processor.teacher_force_logprobs(given(ROWS[0]) if rank else empty(), with_grad=True)
    assert processor.teacher_force_logprobs(empty(), with_grad=True).logprobs == []


def empty():
    sequences = given(ROWS[0])
    none = {"sequences": sequences.sequences[:0], "attention_masks": sequences.attention_masks[:0]}
    return dataclasses.replace(sequences, **none, prompt_lens=[], gen_lens=[])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two ranks left behind. The first is this process: starting another is what takes the time."""
    path, port = tmp_path_factory.mktemp("ddp"), free_port()
    second = mp.get_context("spawn").Process(target=in_group, args=(1, port, path), daemon=True)
    second.start()
    in_group(0, port, path)
    second.join()
    assert second.exitcode == 0
    return path


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("step", [0, 1])
def test_gradients_are_the_average_over_ranks(folder, rank, step):
    first, second = (naive_gradients(make_model(), rows) for rows in ROWS)
    got = torch.load(folder / f"gradients-{rank}-{step}.pt")
    assert got.keys() == first.keys()
    for name, gradient in got.items():
        want = (first[name] + second[name]) / 2
        torch.testing.assert_close(gradient.double(), want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def test_ranks_with_one_seed_draw_apart(folder):
    first, second = (torch.load(folder / f"sequences-{rank}.pt") for rank in (0, 1))
    assert first.shape != second.shape or not torch.equal(first, second)
