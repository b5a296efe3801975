"""Pretrain an encoder of handwritten digits, and write it to a file.

python examples/finetune/pretrain.py        # writes results/finetune/encoder.pt

The encoder learns to restore images in which half of the pixels are missing: no label is used. It
needs scikit-learn.
"""

from pathlib import Path

import torch
from model import encoder, images_and_labels

from brain_core import Brain, Stage


class Restorer(Brain):
    """An autoencoder of images with missing pixels."""

    def compute_forward(self, batch, stage):
        """Hide half of the pixels, and return what the model makes of the rest."""
        images = batch[0].to(self.device)
        shown = images * (torch.rand_like(images) > 0.5)
        return self.modules.decoder(self.modules.encoder(shown))

    def compute_objectives(self, predictions, batch, stage):
        """Return the mean squared error over all pixels."""
        return torch.nn.functional.mse_loss(predictions, batch[0].flatten(1).to(self.device))

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Print the error."""
        if stage is Stage.TRAIN:
            print(f"pretraining, epoch {epoch}: error {stage_loss:.4f}", flush=True)


def main(epochs=8, folder="results/finetune"):
    """Pretrain, and return the path of the encoder's parameters."""
    torch.manual_seed(0)
    Path(folder).mkdir(parents=True, exist_ok=True)
    modules = {"encoder": encoder(), "decoder": torch.nn.Linear(64, 64)}
    brain = Restorer(modules, lambda parameters: torch.optim.Adam(parameters, lr=3e-3))
    images, _ = images_and_labels()
    data = torch.utils.data.TensorDataset(images)
    brain.fit(range(1, epochs + 1), data, train_loader_kwargs={"batch_size": 32, "shuffle": True})
    path = f"{folder}/encoder.pt"
    torch.save(modules["encoder"].state_dict(), path)
    return path


if __name__ == "__main__":
    main()
