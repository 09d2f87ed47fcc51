"""The loss of some windows as sums and counts, so that batches and processes add up before the division."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from biofound.core.history import Losses
from biofound.core.losses import SumCount, mean_of, msm_loss, stft_loss


@dataclass(frozen=True)
class Terms:
    """MSM (C,) and STFT (R, C) of some windows, for C channels and R resolutions."""

    msm: SumCount
    stft: SumCount

    @classmethod
    def zero(cls, *, channels: int, resolutions: int, device: torch.device) -> Self:
        """The terms of no windows, in float64."""

        def zeros(*shape: int) -> SumCount:
            return SumCount(*(torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(2)))

        return cls(zeros(channels), zeros(resolutions, channels))

    def __add__(self, other: "Terms") -> "Terms":
        """The terms of both sets of windows together."""
        return Terms(self.msm + other.msm, self.stft + other.stft)

    def counted_as(self, whole: "Terms") -> "Terms":
        """These sums over the counts of a whole they belong to: the parts' losses add up to its loss."""
        return Terms(
            SumCount(self.msm.total, whole.msm.count.float()),
            SumCount(self.stft.total, whole.stft.count.float()),
        )

    def total(self, *, stft_weight: float) -> Tensor:
        """`MSM + stft_weight * STFT`."""
        return msm_loss(self.msm) + stft_weight * stft_loss(self.stft)

    def losses(self, *, stft_weight: float, channels: tuple[str, ...]) -> Losses:
        """The losses as plain numbers."""
        return Losses(
            loss=self.total(stft_weight=stft_weight).item(),
            msm=msm_loss(self.msm).item(),
            stft=stft_loss(self.stft).item(),
            msm_by_channel=dict(zip(channels, mean_of(self.msm).tolist(), strict=True)),
        )

    def packed(self) -> Tensor:
        """All sums and counts in one float64 vector, without the graph: what processes add up."""
        parts = (self.msm.total, self.msm.count, self.stft.total, self.stft.count)
        return torch.cat([part.detach().double().flatten() for part in parts])

    @classmethod
    def unpacked(cls, vector: Tensor, *, channels: int, resolutions: int) -> Self:
        """The inverse of `packed`."""
        c, rc = channels, resolutions * channels
        msm_total, msm_count, stft_total, stft_count = torch.split(vector, [c, c, rc, rc])
        shape = (resolutions, channels)
        return cls(SumCount(msm_total, msm_count), SumCount(stft_total.view(shape), stft_count.view(shape)))
