"""Train a small recognizer of spoken digits; the clips are made by prepare.py.

    python train.py hparams.yaml            # about half a minute on one core

A run that is stopped at any moment resumes when the same command is started again.
"""

from __future__ import annotations

import math
import sys

import torch
from hyperpyyaml import load_hyperpyyaml
from prepare import prepare_digits, read_wav

import brain_core
from brain_core import LRSchedule, Stage
from brain_data import DynamicBatchSampler, DynamicItemDataset, provides, takes
from brain_dist import ddp_init_group, if_main_process, run_on_main


class Recognizer(brain_core.Brain):
    """Log filterbanks, a convolution and a bidirectional GRU; CTC aligns the digits."""

    def compute_forward(self, batch, stage):
        """Return log-probabilities (batch, frames, symbols) and each clip's number of frames."""
        batch = batch.to(self.device)
        clips, relative = batch.sig
        samples = (relative * clips.shape[1]).round().long()
        features, frames = self.modules.features(clips, samples)
        hidden = self.modules.convolution(features.transpose(1, 2)).relu().transpose(1, 2)
        frames = (frames + 1) // 2  # the convolution's stride
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            self.modules.dropout(hidden), frames.cpu(), batch_first=True, enforce_sorted=False
        )
        hidden, _ = torch.nn.utils.rnn.pad_packed_sequence(
            self.modules.rnn(packed)[0], batch_first=True
        )
        return self.modules.output(self.modules.dropout(hidden)).log_softmax(-1), frames

    def compute_objectives(self, predictions, batch, stage):
        """Return the CTC loss; outside training, count the errors too."""
        log_probs, frames = predictions
        symbols, relative = batch.symbols
        if stage is not Stage.TRAIN:
            heard = [self.decode(*row) for row in zip(log_probs, frames, strict=True)]
            self.scored += zip([text.split() for text in batch.digits], heard, strict=True)
        return torch.nn.functional.ctc_loss(
            log_probs.transpose(0, 1),
            symbols,
            frames,
            (relative * symbols.shape[1]).round().long(),
            blank=self.hparams.blank_index,
            zero_infinity=True,
        )

    def decode(self, log_probs, frames):
        """Return a clip's digits: the best of each frame, without repeats and blanks."""
        best = log_probs[:frames].argmax(-1).unique_consecutive().tolist()
        return [str(symbol - 1) for symbol in best if symbol != self.hparams.blank_index]

    def error_rate(self):
        """Return wrong digits in percent of the digits."""
        errors = sum(edit_distance(said, heard) for said, heard in self.scored)
        return 100 * errors / sum(len(said) for said, _ in self.scored)

    def on_stage_start(self, stage, epoch=None):
        """Forget the scores."""
        self.scored = []

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log the figures and keep the checkpoint with the lowest error rate."""
        if stage is Stage.TRAIN:
            self.train_loss = stage_loss
            return
        stats = {"loss": stage_loss, "WER": self.error_rate()}
        if stage is Stage.VALID:
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"]},
                train_stats={"loss": self.train_loss},
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(meta={"WER": stats["WER"]}, min_keys=["WER"])
        else:
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch loaded": self.hparams.epoch_counter.current}, test_stats=stats
            )


def edit_distance(said: list[str], heard: list[str]) -> int:
    """Return the number of digits that were inserted, left out or replaced."""
    row = list(range(len(heard) + 1))
    for i, one in enumerate(said, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (one != other))
    return row[-1]


def make_dataset(folder, part, noise=0.0):
    """Return a set of clips; with noise, each time that a clip is read it has another."""

    @takes("wav")
    @provides("sig")
    def sig(path):
        clip = torch.from_numpy(read_wav(path))
        return clip + noise * torch.rand(1) * torch.randn(len(clip)) if noise else clip

    @takes("digits")
    @provides("symbols")
    def symbols(digits):
        return torch.tensor([int(digit) + 1 for digit in digits.split()])

    return DynamicItemDataset.from_json(
        f"{folder}/{part}.json",
        replacements={"folder": folder},
        dynamic_items=[sig, symbols],
        output_keys=["id", "sig", "symbols", "digits"],
    )


def main(arguments):
    """Make the clips, train, test, and return the Brain."""
    hparams_file, run_opts, overrides = brain_core.parse_arguments(arguments)
    ddp_init_group(run_opts)
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    torch.set_num_threads(hparams["threads"])
    folder, warm_up = hparams["output_folder"], hparams["warm_up"]
    brain_core.create_experiment_directory(
        experiment_directory=folder, hyperparams_to_save=hparams_file, overrides=overrides
    )
    sizes = {name: hparams[name] for name in ("train_clips", "held_out_clips")}
    run_on_main(prepare_digits, kwargs={"folder": folder, **sizes})
    train_set = make_dataset(folder, "train", hparams["noise"])

    def rate(step, total):
        return min(1, step / total / warm_up) * (0.51 + 0.49 * math.cos(math.pi * step / total))

    brain = Recognizer(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
        callbacks=[LRSchedule(rate)],
    )
    sampler = DynamicBatchSampler(
        train_set,
        max_batch_length=hparams["max_batch_length"],
        num_buckets=hparams["num_buckets"],
        seed=hparams["seed"],
    )
    brain.fit(
        hparams["epoch_counter"],
        train_set,
        make_dataset(folder, "valid"),
        train_loader_kwargs={"batch_sampler": sampler, **hparams["train_loader_kwargs"]},
        valid_loader_kwargs=hparams["eval_loader_kwargs"],
    )
    brain.evaluate(
        make_dataset(folder, "test"),
        min_key="WER",
        test_loader_kwargs=hparams["eval_loader_kwargs"],
    )
    if if_main_process():
        for said, heard in brain.scored[:5]:
            print(f"said {' '.join(said):15} heard {' '.join(heard)}")
        print(f"Word error rate on {len(brain.scored)} unseen clips: {brain.error_rate():.2f} %")
    return brain


if __name__ == "__main__":
    main(sys.argv[1:])
