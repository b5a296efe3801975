"""Collate 32 clips of 8,000 to 16,000 samples: CPU microseconds, beside the plain ways.

python benchmarks/data_collate.py        (with SpeechBrain on the path it is measured too)
"""

from __future__ import annotations

import torch
from _data_rounds import rounds, table

from brain_data import PaddedBatch, batch_pad_right


def zeros_and_copy(clips: list[torch.Tensor]) -> torch.Tensor:
    """Fill a tensor of zeros row by row."""
    out = torch.zeros(len(clips), max(map(len, clips)))
    for row, clip in zip(out, clips, strict=True):
        row[: len(clip)] = clip
    return out


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clips = [torch.randn(n) for n in torch.randint(8_000, 16_001, (32,)).tolist()]
    whole = batch_pad_right(clips)[0]
    rows = [{"id": str(i), "wav": clip} for i, clip in enumerate(clips)]
    contenders = {
        "pad_sequence": lambda: torch.nn.utils.rnn.pad_sequence(clips, batch_first=True),
        "zeros + copy": lambda: zeros_and_copy(clips),
        "clone (limit)": whole.clone,
        "brain batch_pad_right": lambda: batch_pad_right(clips),
        "brain PaddedBatch": lambda: PaddedBatch(rows),
    }
    try:
        from speechbrain.dataio.batch import PaddedBatch as TheirBatch
        from speechbrain.utils.data_utils import batch_pad_right as their_padding
    except ImportError:
        print("SpeechBrain is not installed: left out")
    else:
        contenders["speechbrain batch_pad_right"] = lambda: their_padding(clips)
        contenders["speechbrain PaddedBatch"] = lambda: TheirBatch(rows)
    seconds = rounds(contenders, repeats=41, times=20)
    table("32 clips of 8,000 to 16,000 floats, us", seconds, "pad_sequence")


if __name__ == "__main__":
    main()
