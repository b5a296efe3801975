"""Fit a curve. Kill this script at any moment and start it again: it continues bit for bit."""

import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter


class Curve(Brain):
    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0].to(self.device))

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.mse_loss(predictions, batch[1].to(self.device))

    def on_stage_end(self, stage, stage_loss, epoch=None):
        print(f"epoch {epoch}: loss {stage_loss:.6f}", flush=True)


torch.manual_seed(0)
x = torch.linspace(-3, 3, 4096).unsqueeze(1)
layers = torch.nn.Linear(1, 64), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(64, 1)
checkpointer = Checkpointer("save")
options = {"ckpt_interval_steps": 50}
brain = Curve({"model": torch.nn.Sequential(*layers)}, torch.optim.Adam, {}, options, checkpointer)
data = torch.utils.data.TensorDataset(x, torch.sin(2 * x))
brain.fit(EpochCounter(12), data, train_loader_kwargs={"batch_size": 32, "shuffle": True})
print("weights:", sum(weight.double().sum().item() for weight in brain.modules.parameters()))
