"""MNIST at 8x8: the first stage of a cascade, whose second is configs/mnist8to32.py.

Command:   python train.py --config configs/mnist8.py
Hardware:  2 CPU cores
Time:      not measured (14 min beside other work)
Result:    held-out loss 0.133

Digits are padded from 28x28 to 32x32 and reduced to 8x8 as the low resolution of the second
stage is, so that both see the same pixels (docs/cascades.md).
"""

from diffusion_jax.config import (
    Config,
    DataConfig,
    EMAConfig,
    OptimizerConfig,
    ProcessConfig,
    SamplingConfig,
    TrainingConfig,
    UNetConfig,
)


def get_config() -> Config:
    return Config(
        name="mnist8",
        data=DataConfig(
            source="tfds:mnist",
            image_size=(8,),
            reduced_from=(32,),
            resize="pad",
            channels=1,
            batch_size=64,
        ),
        model=UNetConfig(
            base_channels=32,
            channel_mults=(1, 1),
            num_res_blocks=1,
            attn_resolutions=(4,),
            dropout=0.0,
            num_groups=8,
        ),
        process=ProcessConfig(schedule="cosine", num_timesteps=1000, prediction="v"),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, decay="cosine"),
        ema=EMAConfig(decay=0.995, warmup=True),
        training=TrainingConfig(
            num_steps=4000,
            log_every=50,
            eval_every=500,
            checkpoint_every=1000,
            sample_every=1000,
        ),
        sampling=SamplingConfig(sampler="ddpm", steps=1000, batch_size=64),
    )
