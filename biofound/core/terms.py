"""The loss of some windows as sums and counts, so that batches and processes add up before the division."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from biofound.core.history import Losses
from biofound.core.losses import SumCount, mean_of, msm_loss, stft_loss


@dataclass(frozen=True)
class Terms:
    """MSM (C,), STFT (R, C), global and rhythm term (2,) of some windows: C channels, R resolutions."""

    msm: SumCount
    stft: SumCount
    rhythm: SumCount

    @classmethod
    def zero(cls, *, channels: int, resolutions: int, device: torch.device) -> Self:
        """The terms of no windows, in float64."""

        def zeros(*shape: int) -> SumCount:
            return SumCount(*(torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(2)))

        return cls(zeros(channels), zeros(resolutions, channels), zeros(2))

    def __add__(self, other: "Terms") -> "Terms":
        """The terms of both sets of windows together."""
        return Terms(self.msm + other.msm, self.stft + other.stft, self.rhythm + other.rhythm)

    def counted_as(self, whole: "Terms") -> "Terms":
        """These sums over the counts of a whole they belong to: the parts' losses add up to its loss."""
        return Terms(
            SumCount(self.msm.total, whole.msm.count.float()),
            SumCount(self.stft.total, whole.stft.count.float()),
            SumCount(self.rhythm.total, whole.rhythm.count.float()),
        )

    def total(self, *, stft_weight: float, rhythm_weights: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """`MSM + stft_weight * STFT`, and the global and rhythm term by their weights."""
        loss = msm_loss(self.msm) + stft_weight * stft_loss(self.stft)
        for weight, term in zip(rhythm_weights, mean_of(self.rhythm), strict=True):
            if weight:
                loss = loss + weight * term
        return loss

    def losses(
        self,
        *,
        stft_weight: float,
        channels: tuple[str, ...],
        rhythm_weights: tuple[float, float] = (0.0, 0.0),
    ) -> Losses:
        """The losses as plain numbers."""
        global_term, rhythm_term = mean_of(self.rhythm).tolist()
        return Losses(
            loss=self.total(stft_weight=stft_weight, rhythm_weights=rhythm_weights).item(),
            msm=msm_loss(self.msm).item(),
            stft=stft_loss(self.stft).item(),
            msm_by_channel=dict(zip(channels, mean_of(self.msm).tolist(), strict=True)),
            global_term=global_term,
            rhythm_term=rhythm_term,
        )

    def packed(self) -> Tensor:
        """All sums and counts in one float64 vector, without the graph: what processes add up."""
        parts = (*vars(self.msm).values(), *vars(self.stft).values(), *vars(self.rhythm).values())
        return torch.cat([part.detach().double().flatten() for part in parts])

    @classmethod
    def unpacked(cls, vector: Tensor, *, channels: int, resolutions: int) -> Self:
        """The inverse of `packed`."""
        c, rc = channels, resolutions * channels
        msm_total, msm_count, stft_total, stft_count, *rhythm = torch.split(vector, [c, c, rc, rc, 2, 2])
        stft = SumCount(stft_total.view(resolutions, channels), stft_count.view(resolutions, channels))
        return cls(SumCount(msm_total, msm_count), stft, SumCount(*rhythm))
