"""Train a small model to predict how English words are pronounced.

    python train.py hparams.yaml            # about two minutes on one core or two
    python train.py hparams.yaml --full     # larger, trained for longer

A run that is stopped at any moment resumes when the same command is started again.
"""

from __future__ import annotations

import logging
import sys

import torch
from hyperpyyaml import load_hyperpyyaml
from prepare import LETTERS, PHONEMES, prepare_cmudict
from report import draw_curves, edit_distance, write_table

import brain_core
from brain_data import DynamicBatchSampler, DynamicItemDataset, provides, takes
from brain_dist import ddp_init_group, if_main_process, run_on_main

FULL = {
    "--number_of_epochs": 6,
    "--hidden_size": 192,
    "--dropout": 0.2,
    "--output_folder": "results/g2p/full",
}

logger = logging.getLogger(__name__)


class Curves:
    """The figures that are drawn at the end; each checkpoint holds them."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.error_rates: list[tuple[int, float]] = []

    def state_dict(self) -> dict:
        """Return the figures, for a checkpoint."""
        return {"losses": list(self.losses), "error_rates": list(self.error_rates)}

    def load_state_dict(self, state: dict) -> None:
        """Restore the figures of a checkpoint."""
        self.losses, self.error_rates = list(state["losses"]), list(state["error_rates"])


class G2PBrain(brain_core.Brain):
    """A bidirectional GRU reads the letters; each may emit two phonemes, which CTC aligns."""

    def compute_forward(self, batch, stage):
        """Return log-probabilities (batch, letters * phonemes_per_letter, phonemes) and lengths."""
        batch = batch.to(self.device)
        letters, relative = batch.letters
        lengths = (relative * letters.shape[1]).round().long()
        read = self.read(self.modules.embedding(letters), lengths)
        scores = self.modules.output(self.modules.dropout(read))
        frames = scores.unflatten(-1, (-1, self.hparams.phonemes)).flatten(1, 2)
        return frames.log_softmax(-1), lengths * self.hparams.phonemes_per_letter

    def read(self, embedded, lengths):
        """Run the GRU over the letters; its backward direction begins at each word's end."""
        if lengths.min() == embedded.shape[1]:  # the usual batch of the sampler: nothing is padded
            return self.modules.rnn(embedded)[0]
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            embedded, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        return torch.nn.utils.rnn.pad_packed_sequence(
            self.modules.rnn(packed)[0], batch_first=True
        )[0]

    def compute_objectives(self, predictions, batch, stage):
        """Return the CTC loss; outside training, count the errors too."""
        log_probs, frames = predictions
        phonemes, relative = batch.phonemes
        loss = torch.nn.functional.ctc_loss(
            log_probs.transpose(0, 1),
            phonemes,
            frames,
            (relative * phonemes.shape[1]).round().long(),
            blank=self.hparams.blank_index,
            zero_infinity=True,  # a word with more phonemes than frames cannot be aligned
        )
        if stage != brain_core.Stage.TRAIN:
            self.score(batch, self.decode(log_probs, frames))
        return loss

    def decode(self, log_probs, frames):
        """Return the phonemes of each word: the best of each frame, repeats and blanks dropped."""
        predicted = []
        for row, length in zip(log_probs.argmax(-1).tolist(), frames.tolist(), strict=True):
            best = row[:length]
            kept = [b for a, b in zip([None, *best], best, strict=False) if a != b]
            predicted.append(
                [PHONEMES[index - 1] for index in kept if index != self.hparams.blank_index]
            )
        return predicted

    def score(self, batch, predicted):
        """Count each word's errors against the nearest pronunciation that the dictionary lists."""
        for word, hypothesis, listed in zip(batch.id, predicted, batch.pronunciations, strict=True):
            variants = [variant.split() for variant in listed]
            nearest = min(variants, key=lambda v: edit_distance(hypothesis, v))
            self.scored.append((word, hypothesis, nearest, edit_distance(hypothesis, nearest)))

    def error_rate(self):
        """Return phoneme errors in percent of the phonemes."""
        errors = sum(row[3] for row in self.scored)
        return 100 * errors / sum(len(row[2]) for row in self.scored)

    def init_optimizers(self):
        """Make the optimizer, and a learning rate with warm-up and cosine decay."""
        super().init_optimizers()
        total = self.hparams.number_of_epochs * self.batches_per_epoch
        warm_up = self.hparams.warm_up_steps

        def factor(step):
            decay = 0.5 + 0.5 * torch.cos(torch.tensor(torch.pi * min(1.0, step / total))).item()
            return min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * decay)

        self.scheduler = self.hparams.lr_schedule(self.optimizer, factor)
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("scheduler", self.scheduler)
            self.checkpointer.add_recoverable("curves", self.curves)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Set the next learning rate and record the loss."""
        if should_step:
            self.scheduler.step()
        self.curves.losses.append(loss.item())

    def on_stage_start(self, stage, epoch=None):
        """Reset the scores."""
        self.scored = []

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log the figures and keep the checkpoint with the lowest error rate."""
        if stage == brain_core.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        stats = {"loss": stage_loss, "PER": self.error_rate()}
        if stage == brain_core.Stage.VALID:
            self.curves.error_rates.append((len(self.curves.losses), stats["PER"]))
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"]},
                train_stats={"loss": self.train_loss},
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(meta={"PER": stats["PER"]}, min_keys=["PER"])
        else:
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch loaded": self.hparams.epoch_counter.current}, test_stats=stats
            )


def make_datasets(folder):
    """Return the training, validation and test sets: letters and phonemes as numbers."""

    @takes("id")
    @provides("letters")
    def letters_of(word):
        return torch.tensor([LETTERS.index(letter) + 1 for letter in word])

    @takes("pronunciations")
    @provides("phonemes")
    def phonemes_of(pronunciations):
        return torch.tensor([PHONEMES.index(p) + 1 for p in pronunciations[0].split()])

    return [
        DynamicItemDataset.from_json(
            f"{folder}/{part}.json",
            dynamic_items=[letters_of, phonemes_of],
            output_keys=["id", "letters", "phonemes", "pronunciations"],
        )
        for part in ("train", "valid", "test")
    ]


def main(arguments):
    """Prepare the data, train, test, and print where the results are."""
    if "--full" in arguments:
        given = {word.partition("=")[0] for word in arguments}
        full = [f"{name}={value}" for name, value in FULL.items() if name not in given]
        arguments = [word for word in arguments if word != "--full"] + full
    hparams_file, run_opts, overrides = brain_core.parse_arguments(arguments)
    ddp_init_group(run_opts)
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    torch.set_num_threads(hparams["threads"])
    folder = hparams["output_folder"]
    brain_core.create_experiment_directory(
        experiment_directory=folder, hyperparams_to_save=hparams_file, overrides=overrides
    )
    sizes = {name: hparams[name] for name in ("held_out_words", "train_words")}
    run_on_main(prepare_cmudict, kwargs={"folder": folder, **sizes})
    train_set, valid_set, test_set = make_datasets(folder)

    brain = G2PBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.curves = Curves()
    sampler = DynamicBatchSampler(
        train_set,
        max_batch_length=hparams["max_batch_length"],
        bucket_boundaries=list(range(1, 29)),  # words of one length share a batch: no padding
        length_func=lambda row: row["length"],
        seed=hparams["seed"],
    )
    brain.batches_per_epoch = len(sampler)
    brain.fit(
        hparams["epoch_counter"],
        train_set,
        valid_set,
        train_loader_kwargs={"batch_sampler": sampler, **hparams["train_loader_kwargs"]},
        valid_loader_kwargs=hparams["eval_loader_kwargs"],
    )
    brain.evaluate(test_set, min_key="PER", test_loader_kwargs=hparams["eval_loader_kwargs"])
    if if_main_process():
        report(brain, folder)


def report(brain, folder):
    """Draw the curves, write the table of unseen words, and print the error rate."""
    if brain.curves.error_rates:
        draw_curves(brain.curves, brain.error_rate(), f"{folder}/curves.png")
    print(write_table(brain.scored, f"{folder}/unseen_words.txt"))
    print(f"\nPhoneme error rate on {len(brain.scored)} unseen words: {brain.error_rate():.2f} %")
    print("(against the nearest pronunciation that the dictionary lists)")
    print(f"Results: {folder}/ with train_log.txt, curves.png, unseen_words.txt, log.txt, save/")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command resumes this run.")
