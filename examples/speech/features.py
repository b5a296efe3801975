"""Log filterbanks, by torch alone."""

from __future__ import annotations

import torch


class FilterBank(torch.nn.Module):
    """Logarithms of energies in bands that are equally wide on the mel scale.

    A clip has the same features in every batch: frames do not reach beyond its end.

    Parameters
    ----------
    rate : int
        Samples a second.
    bands : int
        The number of bands.
    window, hop : int
        Length and distance of the frames, in samples.
    """

    def __init__(self, rate: int, bands: int = 40, window: int = 200, hop: int = 80) -> None:
        super().__init__()
        self.window, self.hop = window, hop
        self.register_buffer("taper", torch.hann_window(window), persistent=False)
        self.register_buffer("filters", triangles(rate, bands, window // 2 + 1), persistent=False)

    def forward(self, clips, lengths):
        """Return features (batch, frames, bands) and each clip's number of frames.

        Parameters
        ----------
        clips : torch.Tensor
            Clips (batch, samples), padded.
        lengths : torch.Tensor
            Each clip's number of samples.
        """
        spectrum = torch.stft(
            clips,
            self.window,
            self.hop,
            window=self.taper,
            center=False,
            return_complex=True,
        )
        logs = (spectrum.abs().square().transpose(1, 2) @ self.filters).clamp(min=1e-5).log()
        frames = (lengths - self.window).div(self.hop, rounding_mode="floor") + 1
        inside = torch.arange(logs.shape[1], device=logs.device) < frames[:, None]
        logs = logs * inside[:, :, None]
        mean = logs.sum(1, keepdim=True) / frames[:, None, None]
        return (logs - mean) * inside[:, :, None], frames


def triangles(rate: int, bands: int, bins: int) -> torch.Tensor:
    """Return weights (bins, bands): each band rises from one centre and falls to the next."""
    mels = torch.linspace(0, 2595 * torch.tensor(1 + rate / 2 / 700).log10().item(), bands + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    bins_hz = torch.linspace(0, rate / 2, bins)[:, None]
    rising = (bins_hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins_hz) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)
