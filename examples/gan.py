"""A GAN that learns a circle: in the generator's step the discriminator skips, so that no gradient of its weights is computed.

python examples/gan.py [--steps 300]
"""

import argparse

import torch
import torch.nn as nn

import wuskern as wk

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=300)
given = parser.parse_args()

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
discriminator = wk.convert(nn.Sequential(nn.Linear(2, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2),
                                         nn.Linear(128, 1)))  # fmt: skip
of_generator = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
of_discriminator = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))
loss_of, ones, zeros = nn.BCEWithLogitsLoss(), torch.ones(256, 1), torch.zeros(256, 1)


def circle():
    angle = 2 * torch.pi * torch.rand(256, 1)
    return torch.cat([angle.cos(), angle.sin()], 1)


def radius():
    with torch.no_grad():
        return generator(torch.randn(1024, 8)).norm(dim=1).mean().item()


print(f"before: mean radius {radius():.2f}, of the circle 1.00")
for _ in range(given.steps):
    fake = generator(torch.randn(256, 8))

    of_discriminator.zero_grad()  # of what the generator's step left in biases, too
    (loss_of(discriminator(circle()), ones) + loss_of(discriminator(fake.detach()), zeros)).backward()
    of_discriminator.step()

    of_generator.zero_grad()
    with wk.skipping(discriminator):  # read in forward; the gradient of its input is what it would be
        loss = loss_of(discriminator(fake), ones)
    loss.backward()
    of_generator.step()
print(f"after {given.steps} steps: mean radius {radius():.2f}")
