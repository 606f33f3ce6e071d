"""Pictures of your own from 64x64 to 256x256: a second stage after configs/folder.py.

Command:   python train.py --config configs/folder64to256.py --config.data.path=DIR
Hardware:  not measured
Time:      not measured
Result:    not measured

The first stage sees the same pictures, reduced from 256x256:

    python train.py --config configs/folder.py --config.data.path=DIR \
        --config.data.reduced_from=256 --workdir runs/folder64
    python sample.py --cascade runs/folder64,runs/folder64to256 --num 16

The network is that of configs/folder256.py without its attention over 16x16 pixels: the
low resolution already says what lies where. --config.model.dtype=bfloat16 needs half of the
memory for activations.
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
        name="folder64to256",
        data=DataConfig(
            source="folder",
            image_size=(256,),
            low_res=(64,),
            channels=0,
            batch_size=64,
            random_flip=False,
        ),
        model=UNetConfig(
            base_channels=128,
            channel_mults=(1, 1, 2, 2, 4, 4),
            num_res_blocks=2,
            attn_resolutions=(),
            num_heads=1,
            dropout=0.0,
            num_groups=32,
        ),
        process=ProcessConfig(schedule="cosine", num_timesteps=1000, prediction="v"),
        loss=LossConfig(aug_level=0.5),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=5000, grad_clip=1.0),
        ema=EMAConfig(decay=0.9999, warmup=True),
        training=TrainingConfig(
            num_steps=200_000,
            log_every=100,
            eval_every=5000,
            checkpoint_every=5000,
            sample_every=10_000,
            num_samples=16,
        ),
        sampling=SamplingConfig(sampler="ddpm", steps=1000, aug_level=0.1, batch_size=16),
    )
