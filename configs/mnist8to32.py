"""MNIST from 8x8 to 32x32: the second stage of a cascade, after configs/mnist8.py.

Command:   python train.py --config configs/mnist8to32.py
Hardware:  2 CPU cores
Time:      5 min 13 s
Result:    FD 2.42 +- 0.89 of refined digits (docs/cascades.md), held-out loss 0.064

`python sample.py --cascade runs/mnist8,runs/mnist8to32` draws 8x8 digits and refines them;
`python sample.py --workdir runs/mnist8to32 --upscale PICTURES` refines pictures of your own
(docs/cascades.md). The network sees the digit of 8x8 pixels with noise of a level that it
is told, from 0 to 0.5.
"""

from diffusion_jax.config import (
    Config,
    DataConfig,
    EMAConfig,
    LossConfig,
    OptimizerConfig,
    ProcessConfig,
    SamplingConfig,
    TrainingConfig,
    UNetConfig,
)


def get_config() -> Config:
    return Config(
        name="mnist8to32",
        data=DataConfig(
            source="tfds:mnist",
            image_size=(32,),
            low_res=(8,),
            resize="pad",
            channels=1,
            batch_size=32,
        ),
        model=UNetConfig(
            base_channels=16,
            channel_mults=(1, 2, 2),
            num_res_blocks=1,
            attn_resolutions=(8,),
            dropout=0.0,
            num_groups=8,
        ),
        process=ProcessConfig(schedule="cosine", num_timesteps=1000, prediction="v"),
        loss=LossConfig(aug_level=0.5),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, decay="cosine"),
        ema=EMAConfig(decay=0.995, warmup=True),
        training=TrainingConfig(
            num_steps=1200,
            log_every=50,
            eval_every=100,
            checkpoint_every=400,
            sample_every=400,
            num_samples=16,
            sample_steps=20,
        ),
        sampling=SamplingConfig(sampler="dpmpp_2m", steps=20, aug_level=0.1, batch_size=64),
    )
