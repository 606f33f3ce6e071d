"""Pictures of your own, 256x256: the DDPM paper's network for LSUN and CelebA-HQ.

Command:   python train.py --config configs/folder256.py --config.data.path=DIR
Hardware:  not measured (the paper: TPU v3-8, 2.2 steps/s at batch 64)
Time:      not measured
Result:    not measured

113,673,219 parameters; every hyper-parameter as in the authors' code for CelebA-HQ (Ho et
al. 2020). A large set streams from the disk, by --config.data.num_workers processes.
--config.model.dtype=bfloat16 needs half of the memory for activations.
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
        name="folder256",
        data=DataConfig(
            source="folder",
            image_size=(256,),
            channels=3,
            batch_size=64,
            random_flip=True,
        ),
        model=UNetConfig(
            base_channels=128,
            channel_mults=(1, 1, 2, 2, 4, 4),
            num_res_blocks=2,
            attn_resolutions=(16,),
            num_heads=1,
            dropout=0.0,
            num_groups=32,
        ),
        process=ProcessConfig(
            schedule="linear",
            num_timesteps=1000,
            beta_start=1e-4,
            beta_end=0.02,
            variance="fixed_small",
        ),
        optimizer=OptimizerConfig(
            name="adam",
            learning_rate=2e-5,
            warmup_steps=5000,
            decay="constant",
            grad_clip=1.0,
        ),
        ema=EMAConfig(decay=0.9999, warmup=False),
        training=TrainingConfig(
            num_steps=500_000,
            log_every=100,
            eval_every=5000,
            checkpoint_every=5000,
            sample_every=10_000,
            num_samples=16,
        ),
        sampling=SamplingConfig(sampler="ddpm", steps=1000, batch_size=16),
    )
