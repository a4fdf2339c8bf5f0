"""DistributedDataParallel over two gloo processes: gradients are the average over ranks."""

import dataclasses

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from sequence_processing import GenerationConfig, SequenceProcessor
from tests.breakable import free_port

from .support import PHI3, ROPE_CHANGE, given, make_model, make_tokenizer, naive_gradients
from .test_gradients import added_gradients, assert_exact, own_gradients

# Rank 0 has one row, rank 1 five: with tf_batch_size 2, one forward against three.
ROWS = [
    [[([5, 6], [7, 8, 9])]],
    [[([1, 2, 3], [4, 5])], [([3], [1, 2, 3, 4])], [([9, 9], [1])], [([8], [7, 7])], [([2, 4], [6])]],
]

# Of a model whose positions change with the length: two forwards a micro-batch on rank 1, and one on rank 0.
LONG_ROWS = [[[([5, 6], [7, 8, 9])], [([7], [1])]], [[([*range(ROPE_CHANGE + 3)], [4, 5])]]]


def in_group(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        average_gradients(rank, folder)
        add_up_gradients(rank, folder)
        generate_apart(rank, folder)
        some_rank_has_none(rank)
    finally:
        dist.destroy_process_group()


def wrapped(*kind, **settings):
    model = DistributedDataParallel(make_model(*kind, **settings))
    return SequenceProcessor(model, make_tokenizer(), GenerationConfig(max_new_tokens=4)), model


def average_gradients(rank, folder):
    processor, model = wrapped()
    for step in range(2):  # DDP rebuilds its buckets after the first
        own_gradients(processor, given(ROWS[rank]), tf_batch_size=2)
        save_gradients(model, folder / f"gradients-{rank}-{step}.pt")


def add_up_gradients(rank, folder):
    """A backward a micro-batch, in step with the other rank."""
    processor, model = wrapped()
    parts = [part.rows for part in processor.micro_batches(given(ROWS[rank]), tf_batch_size=2)]
    assert [len(rows) for rows in parts] == ([1, 0, 0], [2, 2, 1])[rank]
    added_gradients(processor, given(ROWS[rank]), tf_batch_size=2)
    save_gradients(model, folder / f"added-{rank}.pt")
    processor, model = wrapped("phi3", **PHI3)
    added_gradients(processor, given(LONG_ROWS[rank]), tf_batch_size=1)
    save_gradients(model, folder / f"long-{rank}.pt")


def save_gradients(model, path):
    torch.save({name: p.grad for name, p in model.module.named_parameters()}, path)


def generate_apart(rank, folder):
    processor, _ = wrapped()
    sequences, results = processor.generate_with_logprobs(["hi"], G=2, seed=0, with_grad=True)
    assert results.logprobs[0][0].requires_grad
    torch.save(sequences.sequences, folder / f"sequences-{rank}.pt")


def some_rank_has_none(rank):
    processor, _ = wrapped()
    with pytest.raises(ValueError, match="every rank needs at least one prompt"):
        processor.teacher_force_logprobs(given(ROWS[0]) if rank else empty(), with_grad=True)
    with pytest.raises(ValueError, match="every rank needs at least one prompt"):
        processor.micro_batches(given(ROWS[0]) if rank else empty())
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


def averages(model, rows_of_ranks):
    first, second = (naive_gradients(model, rows) for rows in rows_of_ranks)
    return {name: (gradient + second[name]) / 2 for name, gradient in first.items()}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ["gradients-{}-0", "gradients-{}-1", "added-{}"])
def test_gradients_are_the_average_over_ranks(folder, rank, name):
    """By one backward, also after the first; and by one a micro-batch."""
    assert_exact(torch.load(folder / f"{name.format(rank)}.pt"), averages(make_model(), ROWS))


@pytest.mark.parametrize("rank", [0, 1])
def test_forwards_stay_in_step_where_some_micro_batches_take_two(folder, rank):
    assert_exact(torch.load(folder / f"long-{rank}.pt"), averages(make_model("phi3", **PHI3), LONG_ROWS))


def test_ranks_with_one_seed_draw_apart(folder):
    first, second = (torch.load(folder / f"sequences-{rank}.pt") for rank in (0, 1))
    assert first.shape != second.shape or not torch.equal(first, second)
