"""Small networks, data and a training loop for meSimp's tests."""

import torch
import torch.nn as nn
import torch.nn.functional as F

X = torch.randn(24, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (24,), generator=torch.Generator().manual_seed(1))
STEPS = 4  # of an epoch


def mlp(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(2)
    parts = nn.Linear(6, 8), activation(), nn.Linear(8, 7), activation(), nn.Linear(7, 3)
    return nn.Sequential(*parts).double()


def cnn() -> nn.Sequential:
    torch.manual_seed(2)
    parts = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4)
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(4, 3)).double()


class Viewing(nn.Module):
    """A convolution, its norm, and a head that says ``view(size(0), -1)``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.norm, self.fc, self.out = nn.Conv2d(2, 6, 2), nn.BatchNorm2d(6), nn.Linear(24, 7), nn.Linear(7, 3)
        self.double()

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        return self.out(F.relu(self.fc(x.view(x.size(0), -1))))


def adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=0.02)


def train(net, policy, optimizer, epochs, x=X, after=lambda: None):
    for _ in range(epochs):
        for index in torch.arange(len(Y)).split(len(Y) // STEPS):
            optimizer.zero_grad()
            F.cross_entropy(net(x[index]), Y[index]).backward()
            optimizer.step()
            policy.after_step()
        policy.step()
        after()
