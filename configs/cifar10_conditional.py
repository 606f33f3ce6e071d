"""CIFAR-10 with its classes: DDPM's network and settings, and a label for each image.

Command:   python train.py --config configs/cifar10_conditional.py
Hardware:  not measured
Time:      not measured
Result:    not measured

As configs/cifar10.py, with data.labels: the network learns each class, and all of them
together, for guidance. `python sample.py --label all --guidance 2` draws every class.
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
        name="cifar10_conditional",
        data=DataConfig(
            source="tfds:cifar10",
            image_size=(32,),
            channels=3,
            batch_size=128,
            labels=True,
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
            dtype="float32",
        ),
        process=ProcessConfig(
            schedule="linear",
            num_timesteps=1000,
            beta_start=1e-4,
            beta_end=0.02,
            prediction="eps",
            variance="fixed_large",
        ),
        optimizer=OptimizerConfig(
            name="adam",
            learning_rate=2e-4,
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            warmup_steps=5000,
            decay="constant",
            grad_clip=1.0,
        ),
        ema=EMAConfig(decay=0.9999, warmup=False),
        training=TrainingConfig(
            num_steps=800_000,
            log_every=100,
            eval_every=5000,
            checkpoint_every=5000,
            sample_every=10_000,
            keep_checkpoints=2,
        ),
        sampling=SamplingConfig(sampler="ddpm", steps=1000, batch_size=64),
    )
