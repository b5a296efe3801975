"""What pretraining and fine-tuning share: the encoder and the data."""

import torch
from sklearn.datasets import load_digits


def encoder():
    """Return a network from images (batch, 1, 8, 8) to features (batch, 64)."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(512, 64),
        torch.nn.Tanh(),
    )


def images_and_labels():
    """Return images (1797, 1, 8, 8) between 0 and 1, and the digits that they show."""
    images, labels = load_digits(return_X_y=True)
    images = torch.as_tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return images, torch.as_tensor(labels)
