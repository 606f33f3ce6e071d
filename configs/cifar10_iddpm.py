"""IDDPM on CIFAR-10: cosine schedule, 4,000 timesteps, learned variances, L_hybrid.

Command:   python train.py --config configs/cifar10_iddpm.py
Hardware:  not measured
Time:      not measured
Result:    not measured (the paper, after 500k steps: FID 3.19, 3.17 bits/dim)

Nichol and Dhariwal 2021, with the hyper-parameters of the authors' README. For their
likelihoods (L_vlb: 2.94 bits/dim, FID 11.47) add --config.loss.kind=variational
--config.loss.timesteps=loss_second_moment. Three things differ and follow the DDPM code:
the network gets t itself, not t * 1000 / T; the order of the time embedding's sines; and
the initialisation.
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
        name="cifar10_iddpm",
        data=DataConfig(
            source="tfds:cifar10",
            image_size=(32,),
            channels=3,
            batch_size=128,
            random_flip=False,
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
        process=ProcessConfig(
            schedule="cosine", num_timesteps=4000, prediction="eps", variance="learned"
        ),
        loss=LossConfig(kind="hybrid", variational_scale=0.001, timesteps="uniform"),
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
        sampling=SamplingConfig(sampler="ddpm", steps=4000, batch_size=64),
    )
