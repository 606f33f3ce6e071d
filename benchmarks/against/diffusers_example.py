"""What diffusers' example of unconditional training does, on our digits and network.

Like train_unconditional.py there: Accelerate, AdamW, EMAModel, DDPMScheduler, DataLoader,
and the loss read back and logged each step. In place of its files and its UNet2DModel: the
digits, and the U-Net of torch_unet.py.

    python diffusers_example.py CONFIG_JSON LINES_JSONL
"""

import json
import pathlib
import sys
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from sklearn.datasets import load_digits
from theirs import names
from torch_unet import UNet
from tqdm.auto import tqdm


class Digits(torch.utils.data.Dataset):
    def __init__(self) -> None:
        self.images = np.round(load_digits().images[:1597] * (255 / 16)).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        image = torch.from_numpy(self.images[i])[None].float().div(255)
        return {"input": image.sub(0.5).div(0.5)}  # ToTensor and Normalize.


def main(config: Any, path: pathlib.Path) -> None:
    accelerator = Accelerator(gradient_accumulation_steps=1, mixed_precision="no")
    model = UNet(config.model, config.data.image_size[0], config.data.channels)
    ema_model = EMAModel(
        model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4
    )
    noise_scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    loader = torch.utils.data.DataLoader(
        Digits(), batch_size=config.data.batch_size, shuffle=True, num_workers=0
    )
    steps = config.training.num_steps
    lr_scheduler = get_scheduler(
        "cosine", optimizer, num_warmup_steps=500, num_training_steps=steps
    )
    model, optimizer, loader, lr_scheduler = accelerator.prepare(
        model, optimizer, loader, lr_scheduler
    )
    ema_model.to(accelerator.device)
    step, bar = 0, tqdm(total=steps, disable=None)
    with path.open("w", buffering=1) as lines:
        while step < steps:
            model.train()
            for batch in loader:
                clean = batch["input"]
                noise = torch.randn_like(clean)
                timesteps = torch.randint(0, 1000, (len(clean),), device=clean.device)
                noisy = noise_scheduler.add_noise(clean, noise, timesteps.long())
                with accelerator.accumulate(model):
                    output = model(noisy, timesteps)
                    loss = F.mse_loss(output.float(), noise.float())
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    lr_scheduler.step()
                    optimizer.zero_grad()
                step += 1
                ema_model.step(model.parameters())
                bar.update(1)
                logs = {"loss": loss.detach().item(), "step": step}
                bar.set_postfix(**logs)
                lines.write(json.dumps(logs) + "\n")
                if step == steps:
                    break


if __name__ == "__main__":
    main(
        names(json.loads(pathlib.Path(sys.argv[1]).read_text())), pathlib.Path(sys.argv[2])
    )
