"""IDDPM on CIFAR-10: cosine schedule, 4,000 timesteps (Nichol and Dhariwal 2021).

Command:   python train.py --config configs/cifar10_iddpm.py
Hardware:  not measured
Time:      not measured
Result:    not measured (the paper, after 500k steps with learned variance: FID 3.19)

Every hyper-parameter is that of the authors' README. Not here yet: the learned variance
with its hybrid loss; the reverse variance is the fixed large one and the loss the simple
one (the paper's "cosine simple": FID 3.05). The order of the time embedding's sines and
the initialisation are those of the DDPM code.
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
        name="cifar10_iddpm",
        data=DataConfig(
            source="tfds:cifar10",
            image_size=(32,),
            channels=3,
            batch_size=128,
            random_flip=True,
        ),
        model=UNetConfig(
            base_channels=128,
            channel_mults=(1, 2, 2, 2),
            num_res_blocks=3,
            attn_resolutions=(16, 8),
            num_heads=4,
            dropout=0.3,
            num_groups=32,
            scale_shift_norm=True,
        ),
        process=ProcessConfig(schedule="cosine", num_timesteps=4000, prediction="eps"),
        optimizer=OptimizerConfig(
            name="adamw",
            learning_rate=1e-4,
            weight_decay=0.0,
            warmup_steps=0,
            decay="constant",
            grad_clip=0.0,
        ),
        ema=EMAConfig(decay=0.9999, warmup=False),
        training=TrainingConfig(
            num_steps=500_000,
            log_every=100,
            eval_every=5000,
            checkpoint_every=5000,
            sample_every=10_000,
        ),
        sampling=SamplingConfig(
            sampler="ddpm", steps=4000, variance="fixed_large", batch_size=64
        ),
    )
