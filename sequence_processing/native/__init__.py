"""A faster way on CPUs: C++ kernels over the model's own weights, compiled at first use where there is a compiler.

Nothing is packed or copied, so nothing outlives a change of the weights; and every token's arithmetic depends on its
row alone, so batches, order, neighbours and threads change no bit.
"""
