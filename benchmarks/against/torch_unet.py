"""The DDPM U-Net of `diffusion_jax.networks`, in PyTorch, with the same names.

What a user would write there: [B, C, H, W], `nn.GroupNorm`, `nn.Conv2d`, fused attention.
`load` carries our parameters across, so that both sides compute the same function.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class ResBlock(nn.Module):
    def __init__(self, width: int, features: int, time: int, model: Any):
        super().__init__()
        self.norm1 = nn.GroupNorm(model.num_groups, width, eps=1e-6)
        self.conv1 = nn.Conv2d(width, features, 3, padding=1)
        self.temb = nn.Linear(time, features)
        self.norm2 = nn.GroupNorm(model.num_groups, features, eps=1e-6)
        self.dropout = nn.Dropout(model.dropout)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)
        self.shortcut = nn.Conv2d(width, features, 1) if width != features else None

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.temb(F.silu(temb))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (x if self.shortcut is None else self.shortcut(x))


class AttentionBlock(nn.Module):
    def __init__(self, width: int, model: Any):
        super().__init__()
        self.norm = nn.GroupNorm(model.num_groups, width, eps=1e-6)
        self.q, self.k, self.v, self.out = (nn.Conv2d(width, width, 1) for _ in range(4))
        self.heads = model.num_heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, height, width = x.shape
        h = self.norm(x)

        def split(z: torch.Tensor) -> torch.Tensor:
            shape = (b, self.heads, c // self.heads, height * width)
            return z.reshape(shape).transpose(2, 3)

        h = F.scaled_dot_product_attention(
            split(self.q(h)), split(self.k(h)), split(self.v(h))
        )
        return x + self.out(h.transpose(2, 3).reshape(x.shape))


class UNet(nn.Module):
    """eps [B, C, H, W] of x_t [B, C, H, W] and t [B]."""

    def __init__(self, model: Any, size: int, channels: int):
        super().__init__()
        base, mults = model.base_channels, model.channel_mults
        time, self.base, self.plan = 4 * base, base, []
        self.temb1, self.temb2 = nn.Linear(base, time), nn.Linear(time, time)
        self.conv_in = nn.Conv2d(channels, base, 3, padding=1)
        width, skips = base, [base]

        def add(name: str, module: nn.Module) -> None:
            setattr(self, name, module)
            self.plan.append(name)

        for level, mult in enumerate(mults):
            for i in range(model.num_res_blocks):
                add(f"down{level}_res{i}", ResBlock(width, base * mult, time, model))
                width = base * mult
                if size in model.attn_resolutions:
                    add(f"down{level}_attn{i}", AttentionBlock(width, model))
                self.plan.append("push")
                skips.append(width)
            if level < len(mults) - 1:
                add(f"down{level}_conv", nn.Conv2d(width, width, 3, stride=2))
                self.plan.append("push")
                skips.append(width)
                size //= 2
        add("mid_res0", ResBlock(width, width, time, model))
        add("mid_attn", AttentionBlock(width, model))
        add("mid_res1", ResBlock(width, width, time, model))
        for level in reversed(range(len(mults))):
            for i in range(model.num_res_blocks + 1):
                self.plan.append("pop")
                features = base * mults[level]
                block = ResBlock(width + skips.pop(), features, time, model)
                add(f"up{level}_res{i}", block)
                width = features
                if size in model.attn_resolutions:
                    add(f"up{level}_attn{i}", AttentionBlock(width, model))
            if level:
                add(f"up{level}_conv", nn.Conv2d(width, width, 3, padding=1))
                size *= 2
        self.norm_out = nn.GroupNorm(model.num_groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        half = self.base // 2
        steps = torch.arange(half, device=x.device, dtype=torch.float32)
        angles = t[:, None].float() * torch.exp(-math.log(10000) / (half - 1) * steps)
        temb = torch.cat([angles.sin(), angles.cos()], dim=1).to(self.temb1.weight.dtype)
        temb = self.temb2(F.silu(self.temb1(temb)))
        h = self.conv_in(x)
        skips = [h]
        for name in self.plan:
            if name == "push":
                skips.append(h)
            elif name == "pop":
                h = torch.cat([h, skips.pop()], dim=1)
            else:
                block = getattr(self, name)
                if isinstance(block, ResBlock):
                    h = block(h, temb)
                elif isinstance(block, AttentionBlock):
                    h = block(h)
                elif name.startswith("down"):
                    h = block(F.pad(h, (0, 1, 0, 1)))  # As TensorFlow and Flax pad.
                else:
                    h = block(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(h)))


def load(module: nn.Module, params: Any) -> None:
    """Our parameters, a tree of NumPy arrays, into the module of the same names."""
    theirs = dict(module.named_parameters())
    ours = {}

    def visit(tree: Any, path: tuple[str, ...]) -> None:
        for name, value in tree.items():
            if isinstance(value, dict):
                visit(value, (*path, name))
            else:
                ours[".".join((*path, name))] = np.asarray(value)

    visit(params, ())
    for name, array in ours.items():
        if name.endswith("kernel"):
            axes = (3, 2, 0, 1) if array.ndim == 4 else (1, 0)
            array = array.transpose(axes)
        other = name.replace("kernel", "weight").replace("scale", "weight")
        with torch.no_grad():
            target = theirs.pop(other)
            target.copy_(torch.tensor(array.copy()).reshape(target.shape))
    assert not theirs, sorted(theirs)
