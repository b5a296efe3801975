"""A small language model of Python: it learns from the source code of Python's standard library.

python examples/language_model/train.py      # some minutes on one core

Input and output embeddings are tied, the forward runs in bf16, and four batches make a step. Kill
it at any moment and start it again.
"""

import sysconfig
from pathlib import Path

import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter, Stage

BYTES = 128  # other characters are left out
MODULES = ("argparse", "dataclasses", "inspect", "typing")


def read_text(modules=MODULES):
    """Return the source of some modules as numbers below 128."""
    folder = Path(sysconfig.get_path("stdlib"))
    text = "".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in modules)
    return torch.tensor([ord(character) for character in text if ord(character) < BYTES])


class Windows(torch.utils.data.Dataset):
    """Consecutive pieces of the text: (inputs, the same shifted by one), both (length,)."""

    def __init__(self, text, length):
        self.text, self.length = text, length

    def __len__(self):
        """Return the number of pieces."""
        return (len(self.text) - 1) // self.length

    def __getitem__(self, index):
        """Return a piece."""
        piece = self.text[index * self.length : (index + 1) * self.length + 1]
        return piece[:-1], piece[1:]


class Transformer(torch.nn.Module):
    """A causal transformer whose output layer is its embedding."""

    def __init__(self, width, layers, length, dropout=0.1):
        super().__init__()
        self.embedding = torch.nn.Embedding(BYTES, width)
        self.position = torch.nn.Parameter(torch.zeros(length, width))
        block = torch.nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = torch.nn.TransformerEncoder(
            block, layers, norm=torch.nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.output = torch.nn.Linear(width, BYTES, bias=False)
        torch.nn.init.normal_(self.embedding.weight, std=0.02)
        self.output.weight = self.embedding.weight  # tied: trained, saved and counted once

    def forward(self, symbols):
        """Return scores (batch, length, BYTES) of the next symbol at each place."""
        length = symbols.shape[1]
        mask = torch.full((length, length), float("-inf"), device=symbols.device).triu(1)
        x = self.embedding(symbols) + self.position[:length]
        return self.output(self.blocks(x, mask=mask, is_causal=True))


class LanguageModel(Brain):
    """Predicts the next character."""

    def compute_forward(self, batch, stage):
        """Return the scores of the next character."""
        return self.modules.model(batch[0].to(self.device))

    def compute_objectives(self, predictions, batch, stage):
        """Return the cross entropy, in nats a character."""
        targets = batch[1].to(self.device)
        return torch.nn.functional.cross_entropy(predictions.flatten(0, 1), targets.flatten())

    def loss_weight(self, batch):
        """Weigh a batch by its characters: the last one of an epoch may be smaller."""
        return batch[1].numel()

    def init_optimizers(self):
        """Warm up, then decay to zero over the steps of the whole run."""
        super().init_optimizers()
        total, warm = self.hparams.steps, max(1, self.hparams.steps // 20)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min((step + 1) / warm, max(0.0, 1 - step / total))
        )
        self.checkpointer.add_recoverable("schedule", self.schedule)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Set the next learning rate after each optimizer step."""
        if should_step:
            self.schedule.step()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Print bits a character, and keep the best checkpoint."""
        if stage is Stage.VALID:
            bits = stage_loss / torch.log(torch.tensor(2.0)).item()
            print(f"epoch {epoch}: {bits:.2f} bits a character on unseen code", flush=True)
            self.checkpointer.save_and_keep_only({"bits": bits}, min_keys=["bits"])

    @torch.no_grad()
    def write(self, prompt, count):
        """Return the prompt and the likeliest characters after it."""
        self.modules.eval()
        symbols = [ord(character) for character in prompt]
        for _ in range(count):
            seen = torch.tensor([symbols[-self.hparams.length :]], device=self.device)
            symbols.append(int(self.modules.model(seen)[0, -1].argmax()))
        return "".join(map(chr, symbols))


def main(
    epochs=4, width=64, layers=2, length=128, modules=MODULES, folder="results/language_model"
):
    """Train, print what the model writes, and return the Brain."""
    torch.manual_seed(0)
    text = read_text(modules)
    split = int(0.9 * len(text))
    train, unseen = Windows(text[:split], length), Windows(text[split:], length)
    batch_size, accumulation = 8, 4
    brain = LanguageModel(
        {"model": Transformer(width, layers, length)},
        lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.1),
        {"length": length, "steps": epochs * -(-len(train) // (batch_size * accumulation))},
        {
            "precision": "bf16",
            "eval_precision": "bf16",
            "grad_accumulation_factor": accumulation,
            "ckpt_interval_steps": 100,
        },
        Checkpointer(folder),
    )
    brain.fit(
        EpochCounter(epochs),
        train,
        unseen,
        train_loader_kwargs={"batch_size": batch_size, "shuffle": True},
        valid_loader_kwargs={"batch_size": 32},
    )
    brain.evaluate(unseen, min_key="bits", test_loader_kwargs={"batch_size": 32})
    print(brain.write("    def __init__(self", 120))
    return brain


if __name__ == "__main__":
    main()
