"""CIFAR-10 from 16x16 to 32x32: the second stage of a cascade, with DDPM's network.

Command:   python train.py --config configs/cifar10_16to32.py
Hardware:  not measured
Time:      not measured
Result:    not measured

The first stage is configs/cifar10.py with smaller images, reduced as those that this stage
refines are:

    python train.py --config configs/cifar10.py --config.data.image_size=16 \
        --config.data.reduced_from=32 --workdir runs/cifar10_16
    python sample.py --cascade runs/cifar10_16,runs/cifar10_16to32 --num 64
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
        name="cifar10_16to32",
        data=DataConfig(
            source="tfds:cifar10",
            image_size=(32,),
            low_res=(16,),
            channels=3,
            batch_size=128,
            random_flip=True,
        ),
        model=UNetConfig(
            base_channels=128,
            channel_mults=(1, 2, 2, 2),
            num_res_blocks=2,
            attn_resolutions=(16,),
            num_heads=1,
            dropout=0.1,
            num_groups=32,
        ),
        process=ProcessConfig(
            schedule="linear",
            num_timesteps=1000,
            beta_start=1e-4,
            beta_end=0.02,
            prediction="eps",
            variance="fixed_large",
        ),
        loss=LossConfig(aug_level=0.5),
        optimizer=OptimizerConfig(
            name="adam", learning_rate=2e-4, warmup_steps=5000, grad_clip=1.0
        ),
        ema=EMAConfig(decay=0.9999, warmup=False),
        training=TrainingConfig(
            num_steps=400_000,
            log_every=100,
            eval_every=5000,
            checkpoint_every=5000,
            sample_every=10_000,
        ),
        sampling=SamplingConfig(sampler="ddpm", steps=1000, aug_level=0.1, batch_size=64),
    )
