"""The whole way on real data: train, quantize three ways, convert, and run every file from C++.

Trains a small residual CNN with a depthwise layer on scikit-learn's 1,797 scanned digits, then makes
  * int8 static by post-training quantization,
  * int8 by quantization-aware training,
  * int8 activations with int4 weights by quantization-aware training,
converts each to integers, saves it, and runs each saved file over the whole test set from Python and from the C++
program `cpp_examples/run_quantized`. Prints one table and the receipts; exits non-zero unless the predictions of
Python and C++ are the same for every image and no layer stayed float unasked.

    python examples/digits.py --runner build/examples/run_quantized
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import torchquant as tq

BATCH = 64
FLOAT_EPOCHS = 30
QAT_EPOCHS = 8


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


class DigitsNet(nn.Module):
    """8x8 grey images [N, 1, 8, 8] in 0..1 -> 10 logits."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.block1 = Residual(16)
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
        )
        self.pointwise = nn.Sequential(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.block2 = Residual(32)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(32, 10)

    def forward(self, x):
        x = self.block1(self.stem(x))
        x = self.block2(self.pointwise(self.depthwise(x)))
        return self.classifier(self.dropout(self.pool(x).flatten(1)))


def load_data():
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.tensor(digits.target)
    train, test = train_test_split(range(len(labels)), test_size=0.25, random_state=0, stratify=digits.target)
    return images[train], labels[train], images[test], labels[test]


def train(model: nn.Module, images, labels, epochs: int, learning_rate: float) -> nn.Module:
    model.train()
    steps = epochs * ((len(images) + BATCH - 1) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()
