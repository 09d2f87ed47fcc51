"""Threaded and sequential micro-batches; test_distributed.py shows that both give the same bits."""

import threading

import pytest
import torch

from biofound.core.micro_batches import SequentialMicroBatches, ThreadedMicroBatches, micro_batches_on

CPU = torch.device("cpu")


def test_threaded_where_there_are_threads(two_threads):
    def kind(device=CPU, *, dropout=0.0, compiled=False, processes=1):
        return type(micro_batches_on(device, dropout=dropout, compiled=compiled, processes=processes))

    assert kind() is ThreadedMicroBatches
    # Dropout draws from one generator: which micro-batch came first would change its masks.
    for sequential in ({"dropout": 0.1}, {"compiled": True}, {"processes": 2}):
        assert kind(**sequential) is SequentialMicroBatches
    assert kind(torch.device("cuda")) is SequentialMicroBatches
    torch.set_num_threads(1)
    assert kind() is SequentialMicroBatches


def test_threaded_micro_batches_run_at_the_same_time_and_share_the_threads(two_threads):
    meet = threading.Barrier(2, timeout=20)

    def meet_others(number):
        meet.wait()  # returns only when both are here
        return number, torch.get_num_threads()

    threaded = ThreadedMicroBatches(threads=8)
    assert threaded.map(meet_others, [0, 1]) == [(0, 4), (1, 4)]
    with threaded.sharing_threads():
        assert torch.get_num_threads() == 4
    assert torch.get_num_threads() == 2
    assert ThreadedMicroBatches(threads=3).map(meet_others, [0, 1]) == [(0, 1), (1, 1)]


@pytest.mark.parametrize("micro_batches", [SequentialMicroBatches(), ThreadedMicroBatches(threads=2)])
def test_results_come_in_order_and_errors_come_through(micro_batches):
    assert micro_batches.map(lambda x: x + 1, [1, 2]) == [2, 3]
    assert micro_batches.map(lambda x: x + 1, []) == []
    with pytest.raises(ZeroDivisionError):
        micro_batches.map(lambda x: 1 / x, [0, 1])
