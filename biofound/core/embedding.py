"""Convolutional patch embedding: a convolution over the whole window, read out patch by patch.

A linear map of a whole second ties every feature to where in the second a beat falls. A convolution finds
the same wave wherever it is, and with dilation it also spans several beats, so that a hidden patch is told
what the rhythm beside it leads to expect. Hidden samples and gaps are blanked before the convolution.
"""

import torch
from torch import Tensor, nn

_LARGEST_STRIDE = 5  # samples between two frames: at 125 Hz there are 25 frames a second
_FIRST_WIDTH, _WIDTH = 32, 48
_SECOND_KERNEL, _KERNEL = 9, 5  # in frames; the first kernel spans three
_DILATIONS = (1, 3, 9, 27)  # in frames; together they reach 80 to either side: 3.2 s at 125 Hz
_GROUPS = 4


class ConvolutionalEmbedding(nn.Module):
    """Features of each channel's patches from convolutions over its window: (B, C, T) -> (B, C, P, D).

    Two convolutions and four dilated residual ones give frames; of those within a patch each feature is
    taken in place, at its largest, and in the mean, and mapped to D. All channels share the weights, and
    no channel reads another.
    """

    def __init__(self, *, patches: int, patch_size: int, d_model: int) -> None:
        """Prepare for P patches of `patch_size` samples, and latents of `d_model`.

        Frames lie one stride apart, the largest up to 5 samples that divides a patch.
        """
        super().__init__()
        stride = max(s for s in range(1, _LARGEST_STRIDE + 1) if patch_size % s == 0)
        self.patches, self.frames = patches, patch_size // stride
        self.first = nn.Sequential(
            nn.Conv1d(2, _FIRST_WIDTH, 3 * stride, stride, padding=stride),
            *_normed(_FIRST_WIDTH),
            nn.Conv1d(_FIRST_WIDTH, _WIDTH, _SECOND_KERNEL, padding=_SECOND_KERNEL // 2),
            *_normed(_WIDTH),
        )
        self.dilated = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(_WIDTH, _WIDTH, _KERNEL, padding=_KERNEL // 2 * dilation, dilation=dilation),
                *_normed(_WIDTH),
            )
            for dilation in _DILATIONS
        )
        self.proj = nn.Linear(_WIDTH * (self.frames + 2), d_model)

    def forward(self, seen: Tensor, visible: Tensor) -> Tensor:
        """Embed windows of which some samples are hidden.

        Args:
            seen: (B, C, T), normalised, 0 where not visible.
            visible: (B, C, T) bool, True where a sample is real and not hidden: the second input, since
                a blank would look like a flat line.

        Returns:
            (B, C, P, D), also for patches in which nothing is visible.
        """
        batch, channels, _ = seen.shape
        features = self.first(torch.stack([seen, visible.to(seen.dtype)], 2).flatten(0, 1))  # (BC, W, F)
        for layer in self.dilated:
            features = features + layer(features)
        by_patch = features.reshape(*features.shape[:2], self.patches, self.frames).transpose(1, 2)
        # by_patch: (BC, P, W, F / P)
        read = torch.cat([by_patch.flatten(2), by_patch.amax(-1), by_patch.mean(-1)], dim=-1)
        embedded: Tensor = self.proj(read)
        return embedded.view(batch, channels, *embedded.shape[1:])


def _normed(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(_GROUPS, width), nn.ReLU()
