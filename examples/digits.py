"""Learn to recognize handwritten digits, in one process or under torchrun."""

import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits

from brain_core import Brain, Stage
from brain_dist import ddp_init_group, if_main_process


class Digits(Brain):
    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0].to(self.device).float().view(-1, 1, 8, 8) / 16)

    def compute_objectives(self, predictions, batch, stage):
        self.right += (predictions.argmax(1).cpu() == batch[1]).sum().item()
        return torch.nn.functional.cross_entropy(predictions, batch[1].to(self.device))

    def on_stage_start(self, stage, epoch=None):
        self.right = 0

    def on_stage_end(self, stage, loss, epoch=None):
        losses[stage].append(loss)
        if stage == Stage.VALID and if_main_process():
            print(f"epoch {epoch}: loss {loss:.4f}, {self.right} of {len(unseen)} digits right")


ddp_init_group()
torch.manual_seed(0)
data = torch.utils.data.TensorDataset(*map(torch.as_tensor, load_digits(return_X_y=True)))
train, unseen = torch.utils.data.random_split(data, [1437, 360])
layers = [torch.nn.Conv2d(1, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.ReLU(), torch.nn.Flatten()]
brain = Digits({"model": torch.nn.Sequential(*layers, torch.nn.Linear(576, 10))}, torch.optim.Adam)
losses = {Stage.TRAIN: [], Stage.VALID: []}
brain.fit(range(1, 6), train, unseen, train_loader_kwargs={"batch_size": 32, "shuffle": True})
if if_main_process():
    for stage, values in losses.items():
        plt.plot(range(1, 6), values, marker="o", label=f"loss, {stage.name.lower()}")
    plt.legend()
    plt.savefig("digits.png")
