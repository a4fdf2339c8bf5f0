"""CUDA graphs of a decode step: recorded once for each shape, then replayed without Python between the kernels."""

from collections.abc import Callable

import torch

Forward = Callable[[int, int], torch.Tensor]


class StepGraphs:
    """A decoder's steps, recorded. They go with the decoder and with its buffers: all memory is read by address.

    `forward(slots, columns)` returns logits [slots, V] for at most `most` slots. It reads and writes device memory that
    stays where it is, looks at no value on the host, and may run twice without harm.
    """

    def __init__(self, device: torch.device, most: int) -> None:
        self._device = device
        self._most = most
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._logits = torch.empty(0)  # [most, V], shared: else each graph would keep logits of its own

    def run(self, forward: Forward, slots: int, columns: int) -> torch.Tensor:
        """`forward(slots, columns)`, valid until the next call; `RuntimeError` if it cannot be recorded."""
        with torch.cuda.device(self._device):
            if (slots, columns) not in self._graphs:
                self._graphs[slots, columns] = self._record(forward, slots, columns)
            self._graphs[slots, columns].replay()
        return self._logits[:slots]

    def _record(self, forward: Forward, slots: int, columns: int) -> torch.cuda.CUDAGraph:
        # A first run beside the recording: libraries set themselves up then, which a recording must not see.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            logits = forward(slots, columns)
        torch.cuda.current_stream().wait_stream(stream)
        if not self._graphs:
            self._logits = logits.new_empty(self._most, logits.shape[1])
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                self._logits[:slots].copy_(forward(slots, columns))
        finally:
            torch.cuda.set_stream(current)  # where it stays otherwise, should ending the recording fail
        return graph
