"""The other side: the same network in PyTorch, as its users train it, and diffusers."""

import pathlib
import types
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch_unet import UNet, load
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

    def start(rate: float) -> Callable[..., list[float]]:
        module = network(config, folder, variant, dtype).train()
        for block in module.modules():
            if isinstance(block, torch.nn.Dropout):
                block.p = rate
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

        return step

    ours, checked = np.load(folder / "ours.npy"), start(rate=0.0)
    gap = 0.0
    batches = [to_device(x, variant) for x in given["x0"]]
    for n, expected in enumerate(ours):
        t = torch.tensor(given["t"][n], device=DEVICE)
        noise = to_device(given["noise"][n], variant)
        loss, norm = checked(batches[n % len(batches)], t, noise)
        found = np.array([loss.item(), norm.item()])
        gap = max(gap, float(np.abs(found / expected - 1).max()))
    step = start(rate=config.model.dropout)
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


def prepare(
    folder: str, work: str, config: dict[str, Any], dtype: str, variant: str, **options: Any
) -> Any:
    """`config` is ours, as JSON: this process has no JAX in it."""
    torch._dynamo.reset()
    return {"forward": forward, "train": train, "sample": sample}[work](
        names(config), pathlib.Path(folder), variant, dtype, **options
    )


if __name__ == "__main__":
    serve(prepare)
