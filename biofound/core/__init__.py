"""From windows to an encoder: masking, losses, models, trainer, checkpoints, inflation, verification.

Words used throughout (shapes are written windows x channels x samples):

- `(B, C, T)`: B windows, C channels, T samples; `P` patches of `L` samples, `P * L = T`; `D` latent width.
- `mask` (B, P), bool: True = hidden from the encoder, and scored by the loss.
- `observed` (B, C, T), bool: True = real data, False = a gap.
- `sfreq`: sampling frequency in Hz.
"""
