"""VA-VAE, an AutoencoderKL with attention at its coarsest level, latents normalised by channel: against PyTorch."""

import json

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from tim_jax import codecs

GROUPS, WIDTHS, LATENTS = 4, (8, 16), 5
CONFIG = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": WIDTHS,
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
    "latent_channels": LATENTS,
    "norm_num_groups": GROUPS,
    "latents_mean": [0.5, -1.0, 0.0, 2.0, 0.1],
    "latents_std": [1.0, 2.0, 0.5, 4.0, 3.0],
    "scaling_factor": 1.0,
}


def conv(a, b, size=3, **options):
    return nn.Conv2d(a, b, size, padding=size // 2, **options)


class Resnet(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, a, 1e-6), conv(a, b)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, b, 1e-6), conv(b, b)
        if a != b:
            self.conv_shortcut = conv(a, b, 1)

    def forward(self, x):
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.group_norm = nn.GroupNorm(GROUPS, width, 1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x):
        z = self.group_norm(x).flatten(2).transpose(1, 2)
        share = torch.softmax(self.to_q(z) @ self.to_k(z).transpose(1, 2) / x.shape[1] ** 0.5, dim=-1)
        return x + self.to_out[0](share @ self.to_v(z)).transpose(1, 2).reshape(x.shape)


class Level(nn.Module):
    def __init__(self, a, b, layers, attends, end=None):
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(a if i == 0 else b, b) for i in range(layers))
        self.attentions = nn.ModuleList(Attention(b) for _ in range(layers * attends))
        if end:
            setattr(
                self,
                end,
                nn.ModuleList([nn.ModuleDict({"conv": nn.Conv2d(b, b, 3, 2) if "down" in end else conv(b, b)})]),
            )

    def forward(self, x):
        for i, resnet in enumerate(self.resnets):
            x = resnet(x)
            x = self.attentions[i](x) if len(self.attentions) else x
        if hasattr(self, "downsamplers"):
            x = self.downsamplers[0]["conv"](F.pad(x, (0, 1, 0, 1)))
        if hasattr(self, "upsamplers"):
            x = self.upsamplers[0]["conv"](x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return x


class Half(nn.Module):
    """The encoder, or the decoder."""

    def __init__(self, name, levels, a, b):
        super().__init__()
        middle, last = (16, 16) if name == "down" else (16, 8)
        self.conv_in, self.conv_out = conv(a, 8 if name == "down" else 16), conv(last, b)
        self.conv_norm_out = nn.GroupNorm(GROUPS, last, 1e-6)
        self.mid_block = Level(middle, middle, 2, 0)
        self.mid_block.attentions = nn.ModuleList([Attention(middle)])
        setattr(self, f"{name}_blocks", nn.ModuleList(levels))

    def middle(self, x):
        first, second = self.mid_block.resnets
        return second(self.mid_block.attentions[0](first(x)))

    def forward(self, x):
        x = self.conv_in(x)
        for level in getattr(self, "down_blocks", ()):
            x = level(x)
        x = self.middle(x)
        for level in getattr(self, "up_blocks", ()):
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        down = [Level(8, 8, 1, False, "downsamplers"), Level(8, 16, 1, True)]
        up = [Level(16, 16, 2, True, "upsamplers"), Level(16, 8, 2, False)]
        self.encoder, self.decoder = Half("down", down, 3, 2 * LATENTS), Half("up", up, LATENTS, 3)
        self.quant_conv, self.post_quant_conv = conv(2 * LATENTS, 2 * LATENTS, 1), conv(LATENTS, LATENTS, 1)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as it is published, and the autoencoder in PyTorch."""
    folder = tmp_path_factory.mktemp("vavae")
    torch.manual_seed(0)
    reference = Reference()
    save_file(reference.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder, reference


def test_it_is_that_of_pytorch(published):
    folder, reference = published
    vae, params = codecs.load(folder, codecs.AUTOENCODERS)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
    mean, std = (np.array(CONFIG[f"latents_{name}"], np.float32) for name in ("mean", "std"))
    nhwc = lambda x: x.permute(0, 2, 3, 1).numpy()  # noqa: E731
    with torch.no_grad():
        z = reference.quant_conv(reference.encoder(torch.from_numpy(images).permute(0, 3, 1, 2)))[:, :LATENTS]
        back = nhwc(reference.decoder(reference.post_quant_conv(z)))
    latents = jax.jit(lambda p, x: vae.apply({"params": p}, x, method="encode"))(params, images)
    np.testing.assert_allclose(latents, (nhwc(z) - mean) / std, rtol=0, atol=1e-5)
    decoded = jax.jit(lambda p, x: vae.apply({"params": p}, x, method="decode"))(params, latents)
    np.testing.assert_allclose(decoded, back, rtol=0, atol=1e-4 * np.abs(back).max())
    scaled, logvar = vae.scaled(*np.zeros((2, 1, 1, 1, LATENTS), np.float32))
    np.testing.assert_allclose(scaled[0, 0, 0], -mean / std, rtol=1e-6)
    np.testing.assert_allclose(np.exp(logvar[0, 0, 0] / 2), 1 / std, rtol=1e-6)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"latents_mean": [0.0]}, "latents_mean is .*; it must have 5 entries"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types is .*; it must have 2 entries"),
        ({"down_block_types": ["DownEncoderBlock2D", "CrossAttnDown"]}, "down_block_types is .*; supported is"),
        ({"shift_factor": 0.1}, "shift_factor is 0.1; it must be null beside latents_mean"),
    ],
)
def test_settings_that_cannot_be_are_named(published, tmp_path, changes, said):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
    (tmp_path / "model.safetensors").write_bytes((published[0] / "diffusion_pytorch_model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=said):
        codecs.describe(tmp_path, codecs.AUTOENCODERS)
