"""Collate 32 clips of 8,000 to 16,000 samples: CPU microseconds, compared with plain torch.

    python benchmarks/data_collate.py [--quick]

SpeechBrain is measured, too, if it is installed.
"""

from __future__ import annotations

import torch
from _timing import cpu_seconds, print_microseconds
from _verdict import report, take_quick

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
    padded = batch_pad_right(clips)[0]
    rows = [{"id": str(i), "wav": clip} for i, clip in enumerate(clips)]
    contenders = {
        "pad_sequence": lambda: torch.nn.utils.rnn.pad_sequence(clips, batch_first=True),
        "zeros + copy": lambda: zeros_and_copy(clips),
        "clone (limit)": padded.clone,
        "brain_data batch_pad_right": lambda: batch_pad_right(clips),
        "brain_data PaddedBatch": lambda: PaddedBatch(rows),
    }
    try:
        from speechbrain.dataio.batch import PaddedBatch as SpeechBrainBatch
        from speechbrain.utils.data_utils import batch_pad_right as speechbrain_pad
    except ImportError:
        print("SpeechBrain is not installed: skipped")
    else:
        contenders["speechbrain batch_pad_right"] = lambda: speechbrain_pad(clips)
        contenders["speechbrain PaddedBatch"] = lambda: SpeechBrainBatch(rows)
    seconds = cpu_seconds(contenders, rounds=9 if take_quick() else 41, calls=20)
    print_microseconds("32 clips of 8,000 to 16,000 floats, us", seconds, "pad_sequence")
    least = {name: 1e6 * min(taken) for name, taken in seconds.items()}
    report(
        "collating 32 clips",
        least["brain_data batch_pad_right"],
        "µs",
        1.0,
        "pad_sequence",
        least["pad_sequence"],
    )


if __name__ == "__main__":
    main()
