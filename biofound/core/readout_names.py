"""Names and defaults of the read-outs in `biofound.core.readout`, so that settings need not import torch."""

from typing import Literal

ReadoutName = Literal[
    "mean", "mean_std", "channels_mean", "channels_mean_std", "layers_mean", "layers_mean_std"
]
"""What is taken (the fused latents; each channel before the fusion; every layer), and how it is pooled."""

DEFAULT_READOUT: ReadoutName = "channels_mean_std"
"""The read-out with the smallest error of heart rate on BIDMC for its size."""

DEFAULT_BATCH_SIZE = 256
"""Windows that go through the encoder at once; features do not depend on it."""
