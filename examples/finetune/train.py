"""Fine-tune a pretrained encoder: load it, train a new head, then unfreeze the encoder.

python examples/finetune/pretrain.py
python examples/finetune/train.py

The head and the encoder have an optimizer each. In the first two epochs the encoder is frozen, and
its optimizer does not step; then it is trained with a lower rate. Kill it at any moment and start
it again. It needs scikit-learn.
"""

import torch
from model import encoder, images_and_labels

from brain_ckpt import Checkpointer, Pretrainer
from brain_core import Brain, EpochCounter, Stage


class FineTuned(Brain):
    """A classifier on an encoder that is frozen at first."""

    def compute_forward(self, batch, stage):
        """Return the scores of the ten digits."""
        return self.modules.head(self.modules.encoder(batch[0].to(self.device)))

    def compute_objectives(self, predictions, batch, stage):
        """Return the cross entropy, and count what is right."""
        labels = batch[1].to(self.device)
        if stage is not Stage.TRAIN:
            self.right += (predictions.argmax(1) == labels).sum().item()
            self.seen += len(labels)
        return torch.nn.functional.cross_entropy(predictions, labels)

    def init_optimizers(self):
        """Make an optimizer for the head and one for the encoder, with a lower rate."""
        rates = {"head": 3e-3, "encoder": 3e-4}
        self.optimizers_dict = {
            name: torch.optim.AdamW(self.modules[name].parameters(), lr=rate)
            for name, rate in rates.items()
        }
        for name, optimizer in self.optimizers_dict.items():
            self.checkpointer.add_recoverable(f"{name}_optimizer", optimizer)

    def freeze_optimizers(self, optimizers):
        """Return the optimizers that step: without the encoder's while that is frozen."""
        frozen = self.hparams.counter.current <= self.hparams.frozen_epochs
        return {"head": optimizers["head"]} if frozen else optimizers

    def on_stage_start(self, stage, epoch=None):
        """Unfreeze the encoder when its time has come, and reset the counts."""
        self.right = self.seen = 0
        if stage is Stage.TRAIN:
            self.modules.encoder.requires_grad_(epoch > self.hparams.frozen_epochs)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Print the accuracy, and keep the best checkpoint."""
        if stage is Stage.VALID:
            right = self.right / self.seen
            state = "frozen" if epoch <= self.hparams.frozen_epochs else "trained"
            print(f"epoch {epoch}, encoder {state}: {100 * right:.1f} % right", flush=True)
            self.checkpointer.save_and_keep_only({"right": right}, max_keys=["right"])


def main(epochs=6, frozen_epochs=2, labelled=200, folder="results/finetune"):
    """Fine-tune on a few labelled images; return the accuracy of the best checkpoint."""
    torch.manual_seed(0)
    modules = {"encoder": encoder(), "head": torch.nn.Linear(64, 10)}
    pretrained = Pretrainer(
        collect_in=f"{folder}/pretrained",
        loadables={"encoder": modules["encoder"]},
        paths={"encoder": f"{folder}/encoder.pt"},
    )
    pretrained.collect_files()
    pretrained.load_collected()

    counter = EpochCounter(epochs)
    brain = FineTuned(
        modules,
        hparams={"counter": counter, "frozen_epochs": frozen_epochs},
        run_opts={"ckpt_interval_steps": 5},
        checkpointer=Checkpointer(f"{folder}/save"),
    )
    data = torch.utils.data.TensorDataset(*images_and_labels())
    few, rest = torch.utils.data.random_split(data, [labelled, len(data) - labelled])
    brain.fit(
        counter,
        few,
        rest,
        train_loader_kwargs={"batch_size": 16, "shuffle": True},
        valid_loader_kwargs={"batch_size": 256},
    )
    brain.evaluate(rest, max_key="right", test_loader_kwargs={"batch_size": 256})
    return brain.right / brain.seen


if __name__ == "__main__":
    main()
