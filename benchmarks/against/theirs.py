"""The other side: the same network in PyTorch, as its users train it, and diffusers."""

import math
import pathlib
import types
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch_unet import ResBlock, UNet, load
from worker import serve

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def names(tree: Any) -> Any:
    """A tree of dicts, by attributes."""
    if not isinstance(tree, dict):
        return tree
    return types.SimpleNamespace(**{k: names(v) for k, v in tree.items()})


def network(config: Any, folder: pathlib.Path, variant: str, dtype: str) -> Any:
    module = UNet(config.model, config.data.image_size[0], config.data.channels)
    with np.load(folder / "weights.npz") as arrays:
        load(module, dict(arrays))
    module = module.to(DEVICE)
    if "channels_last" in variant:
        module = module.to(memory_format=torch.channels_last)
    return module


def to_device(array: np.ndarray, variant: str) -> torch.Tensor:
    """[..., H, W, C] -> [..., C, H, W]."""
    moved = torch.tensor(np.moveaxis(array, -1, -3).copy(), device=DEVICE)
    if "channels_last" in variant and moved.ndim == 4:
        moved = moved.contiguous(memory_format=torch.channels_last)
    return moved


class Dropout(torch.nn.Module):
    """With a rate that is an array: one compiled program serves all."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rate", torch.tensor(0.0, device=DEVICE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (torch.rand_like(x) >= self.rate) / (1 - self.rate)


def compiled(function: Callable, variant: str) -> Callable:
    return torch.compile(function) if "compile" in variant else function


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def autocast(dtype: str) -> Any:
    return torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == "bfloat16")


def forward(config: Any, folder: pathlib.Path, variant: str, dtype: str) -> Any:
    module = network(config, folder, variant, dtype).eval()
    program = compiled(module, variant)
    with np.load(folder / "inputs.npz") as inputs:
        x = to_device(inputs["x"], variant)
        t = torch.tensor(inputs["t"], device=DEVICE)

    @torch.inference_mode()
    def run() -> torch.Tensor:
        with autocast(dtype):
            output = program(x, t)
        wait()
        return output

    ours, found = np.load(folder / "ours.npy"), run().float().cpu().numpy()
    gap = np.abs(np.moveaxis(found, 1, -1) - ours).max() / np.abs(ours).max()
    return run, {"gap": float(gap)}


def train(config: Any, folder: pathlib.Path, variant: str, dtype: str, steps: int) -> Any:
    """L_simple, clip, Adam, one moving average: each as the fastest of PyTorch's own."""
    with np.load(folder / "inputs.npz") as inputs:
        given = dict(inputs)
    alphas = torch.tensor(given["alphas_cumprod"], dtype=torch.float32, device=DEVICE)
    optimizer, decay = config.optimizer, config.ema.decay

    module = network(config, folder, variant, dtype).train()
    for block in module.modules():
        if isinstance(block, ResBlock):
            block.dropout = Dropout() if "compile" in variant else torch.nn.Dropout(0.0)
    params = list(module.parameters())
    average = [p.detach().clone() for p in params]
    adam = torch.optim.Adam(
        params,
        optimizer.learning_rate,
        (optimizer.b1, optimizer.b2),
        optimizer.eps,
        fused=True,
    )
    program = compiled(module, variant)

    def step(
        x0: torch.Tensor, t: torch.Tensor | None = None, noise: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if t is None:
            t = torch.randint(len(alphas), (len(x0),), device=DEVICE)
            noise = torch.randn_like(x0)
        a = alphas[t][:, None, None, None]
        x_t = a.sqrt() * x0 + (1 - a).sqrt() * noise
        with autocast(dtype):
            output = program(x_t, t)
        loss = F.mse_loss(output.float(), noise)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(params, optimizer.grad_clip)
        adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, params, 1 - decay)
        return loss.detach(), norm

    gap = 0.0
    batches = [to_device(x, variant) for x in given["x0"]]
    for n, expected in enumerate(np.load(folder / "ours.npy")):
        t = torch.tensor(given["t"][n], device=DEVICE)
        noise = to_device(given["noise"][n], variant)
        loss, norm = step(batches[n % len(batches)], t, noise)
        found = np.array([loss.item(), norm.item()])
        gap = max(gap, float(np.abs(found / expected - 1).max()))
    for block in module.modules():
        if isinstance(block, Dropout):
            block.rate.fill_(config.model.dropout)
        elif isinstance(block, torch.nn.Dropout):
            block.p = config.model.dropout
    step(batches[0])

    def run() -> None:
        for x0 in batches[:steps]:
            step(x0)
        wait()

    return run, {"gap": gap}


def sample(
    config: Any,
    folder: pathlib.Path,
    variant: str,
    dtype: str,
    sampler: str,
    steps: int,
) -> Any:
    """diffusers' pipeline with the same network, weights, schedule and steps."""
    import diffusers
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.models.modeling_utils import ModelMixin
    from diffusers.models.unets.unet_2d import UNet2DOutput

    class Wrapped(ModelMixin, ConfigMixin):
        @register_to_config
        def __init__(self, sample_size: int, in_channels: int):
            super().__init__()
            self.inner = network(config, folder, variant, dtype).eval()
            self.program = compiled(self.inner, variant)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> UNet2DOutput:
            times = torch.as_tensor(t, device=x.device).expand(len(x))
            if "channels_last" in variant:
                x = x.contiguous(memory_format=torch.channels_last)
            with autocast(dtype):
                return UNet2DOutput(sample=self.program(x, times).float())

    with np.load(folder / "inputs.npz") as inputs:
        betas = 1 - inputs["alphas_cumprod"][1:] / inputs["alphas_cumprod"][:-1]
        betas = np.concatenate([1 - inputs["alphas_cumprod"][:1], betas])
    common = {"trained_betas": betas.tolist(), "clip_sample": True}
    if sampler == "ddpm":
        scheduler: Any = diffusers.DDPMScheduler(**common)
        kind: Any = diffusers.DDPMPipeline
    else:
        scheduler = diffusers.DDIMScheduler(**common, timestep_spacing="trailing")
        kind = diffusers.DDIMPipeline
    model = Wrapped(sample_size=config.data.image_size[0], in_channels=config.data.channels)
    pipeline = kind(unet=model, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)

    options = {"batch_size": config.data.batch_size, "output_type": "np"}
    if sampler == "ddim":
        options["use_clipped_model_output"] = True  # As we do, and the DDPM code.

    def run(count: int = steps) -> Any:
        return pipeline(num_inference_steps=count, **options).images

    run(2)
    if sampler != "ddim":
        return run, {}
    where = "diffusers.pipelines.ddim.pipeline_ddim.randn_tensor"
    start = to_device(np.load(folder / "start.npy"), variant)
    with mock.patch(where, lambda *_, **__: start):
        gap = np.abs(run() * 255 - np.load(folder / "ours.npy"))
    return run, {"gap": float(gap.mean() / 255)}


def bound(config: Any, folder: pathlib.Path, variant: str, dtype: str, steps: int) -> Any:
    """The terms of the bound at one t after another, as DDPM's and IDDPM's code does it."""
    module = compiled(network(config, folder, variant, dtype).eval(), variant)
    with np.load(folder / "inputs.npz") as inputs:
        given = dict(inputs)
    alphas = given["alphas_cumprod"]
    before = np.append(1.0, alphas[:-1])
    betas = 1 - alphas / before
    posterior = betas * (1 - before) / (1 - alphas)
    posterior[0] = posterior[1]
    tables = {
        "x": np.sqrt(alphas),
        "noise": np.sqrt(1 - alphas),
        "inverse": 1 / np.sqrt(alphas),
        "ratio": np.sqrt(1 / alphas - 1),
        "of_x0": np.sqrt(before) * betas / (1 - alphas),
        "of_x_t": np.sqrt(alphas / before) * (1 - before) / (1 - alphas),
        "log_variance": np.log(posterior),
    }
    table = {
        k: torch.tensor(v, dtype=torch.float32, device=DEVICE) for k, v in tables.items()
    }

    @torch.inference_mode()
    def terms(x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        at = {k: v[t][:, None, None, None] for k, v in table.items()}
        x_t = at["x"] * x0 + at["noise"] * noise
        with autocast(dtype):
            eps = module(x_t, t).float()
        predicted = (at["inverse"] * x_t - at["ratio"] * eps).clamp(-1, 1)
        true_mean = at["of_x0"] * x0 + at["of_x_t"] * x_t
        mean = at["of_x0"] * predicted + at["of_x_t"] * x_t
        divergence = 0.5 * (true_mean - mean) ** 2 * torch.exp(-at["log_variance"])
        inverse_std = torch.exp(-0.5 * at["log_variance"])
        upper = torch.special.ndtr((x0 - mean + 1 / 255) * inverse_std)
        lower = torch.special.ndtr((x0 - mean - 1 / 255) * inverse_std)
        upper = torch.where(x0 > 0.999, 1.0, upper)
        lower = torch.where(x0 < -0.999, 0.0, lower)
        first = -torch.log((upper - lower).clamp(min=1e-12))
        nats = torch.where((t == 0)[:, None, None, None], first, divergence)
        return nats.mean((1, 2, 3)) / math.log(2)

    x0, noise = (to_device(given[name], variant) for name in ("x0", "noise"))
    t = torch.tensor(given["t"], device=DEVICE).long()
    ours, found = np.load(folder / "ours.npy"), terms(x0, t, noise).cpu().numpy()
    # Two means that differ by rounding: x_0 is clipped on one side of it, or the other.
    gap = np.abs(found - ours).max() / np.abs(ours).max()

    def run() -> None:
        total = torch.zeros(len(x0), device=DEVICE)
        for i in range(steps):
            times = torch.full((len(x0),), i * len(alphas) // steps, device=DEVICE)
            total += terms(x0, times, torch.randn_like(x0))
        total.cpu()

    return run, {"gap": float(gap)}


EPOCHS = 10  # As many as ours.


class Images(torch.utils.data.Dataset):
    """Of an array, or of the files of a folder; one [C, H, W] in [-1, 1] at a time."""

    def __init__(self, images: Any):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> torch.Tensor:
        image = self.images[i]
        if isinstance(image, pathlib.Path):
            with Image.open(image) as file:
                image = np.asarray(file.convert("RGB"))
        return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 127.5 - 1


def load_batches(
    config: Any, folder: pathlib.Path, variant: str, dtype: str, kind: str
) -> Any:
    """A few epochs of a DataLoader."""
    images: Any = np.load(folder / "images.npy")
    if kind == "files":
        images = sorted((folder / "files").iterdir())
    data, workers = Images(images), int(variant.split()[0])
    loader = torch.utils.data.DataLoader(
        data,
        config.data.batch_size,
        shuffle=True,
        drop_last=False,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=DEVICE == "cuda",
    )
    # Each of some images of ours is one of theirs (ours holds some back, not in order).
    found = np.array([float(data[i].double().sum()) for i in range(len(data))])
    ours = np.load(folder / "ours.npy")
    gap = np.abs(found - ours[:, None]).min(axis=1).max() / np.abs(ours).max()

    def run() -> None:
        for _ in range(EPOCHS):
            for batch in loader:
                batch.to(DEVICE)
        wait()

    return run, {"gap": float(gap)}


def matmul(dtype: str) -> Any:
    x = torch.ones((4096, 4096), dtype=getattr(torch, dtype), device=DEVICE)

    def run() -> None:
        torch.mm(x, x)
        wait()

    return run, {"amount": 2 * 4096**3}


def copy(dtype: str) -> Any:
    x = torch.ones(2**26, device=DEVICE)
    out = torch.empty_like(x)

    def run() -> None:
        torch.neg(x, out=out)
        wait()

    return run, {"amount": 2 * x.nbytes}


def prepare(work: str, **options: Any) -> Any:
    """`config`, if there is one, is ours, as JSON: this process has no JAX in it."""
    torch._dynamo.reset()
    if "config" in options:
        options["config"] = names(options["config"])
        options["folder"] = pathlib.Path(options["folder"])
    return WORK[work](**options)


def memory() -> int | None:
    """The most that the GPU held, bytes; None without one."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None


WORK = {
    "forward": forward,
    "train": train,
    "sample": sample,
    "bound": bound,
    "load": load_batches,
    "matmul": matmul,
    "copy": copy,
}

if __name__ == "__main__":
    serve(prepare, memory)
