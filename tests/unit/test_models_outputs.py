"""Outputs of any form as one row for each sample."""

from __future__ import annotations

import torch
from torch import nn

from pruning.models.outputs import joined, predict


def test_tensors_that_begin_with_the_batch_are_joined_row_by_row() -> None:
    video, audio = torch.arange(12.0).view(2, 3, 2), torch.tensor([[100.0], [200.0]])
    rows = joined({"video": video, "more": (audio, None, torch.tensor([1, 2]))}, 2)
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5, 100], [6, 7, 8, 9, 10, 11, 200]]


def test_a_list_with_a_tensor_for_each_sample() -> None:
    assert joined([torch.ones(1, 3), torch.zeros(3, 1)], 2).tolist() == [[1, 1, 1], [0, 0, 0]]


def test_packed_sequences_are_dealt_out_and_padded() -> None:
    assert joined(torch.arange(1.0, 6.0).view(1, 5, 1), 2).tolist() == [[1, 2, 3], [4, 5, 0]]


def test_models_are_called_without_their_output_classes() -> None:
    class Denoiser(nn.Module):
        def forward(self, x: list[torch.Tensor], return_dict: bool = True) -> object:
            assert not return_dict
            return (x,)

    class Plain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    assert predict(Denoiser(), {"x": [torch.ones(2), torch.zeros(2)]}, 2).tolist() == [[1, 1], [0, 0]]
    assert predict(Plain(), {"x": torch.ones(1, 2)}, 1).tolist() == [[2, 2]]
