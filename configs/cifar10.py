"""DDPM on CIFAR-10, every hyper-parameter as in the authors' code (Ho et al. 2020).

Command:   python train.py --config configs/cifar10.py
Hardware:  not measured (the paper: TPU v3-8, 21 steps/s)
Time:      not measured (the paper: 10.6 hours)
Result:    not measured (the paper: FID 3.17)

35,746,307 parameters. The set is downloaded and prepared once by tensorflow-datasets
(docs/data.md explains where it is). --config.model.dtype=bfloat16 computes in bfloat16;
parameters, schedule, EMA and loss stay in float32.

One thing differs: the gradient is clipped after the mean over devices; the authors clip it
on each replica before the mean.
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
        name="cifar10",
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
