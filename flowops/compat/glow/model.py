"""Steps, blocks and the whole of rosinality's Glow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowops import nn as layers
from flowops import ops
from flowops.compat.glow.layers import (
    ActNorm,
    AffineCoupling,
    InvConv2d,
    InvConv2dLU,
    ZeroConv2d,
    pixels,
    weights_of,
)

__all__ = ["Block", "Flow", "Glow"]

_SQUEEZE = layers.Squeeze()


class Flow(nn.Module):
    """Actnorm, invertible 1x1 convolution and coupling.

    Args:
        in_channel: Channels, even.
        affine: See :class:`AffineCoupling`.
        conv_lu: Whether the convolution is :class:`InvConv2dLU`, not :class:`InvConv2d`.
    """

    def __init__(self, in_channel: int, affine: bool = True, conv_lu: bool = True) -> None:
        super().__init__()
        self.actnorm = ActNorm(in_channel)
        self.invconv = InvConv2dLU(in_channel) if conv_lu else InvConv2d(in_channel)
        self.coupling = AffineCoupling(in_channel, affine=affine)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Return the moved batch and the log-determinant, (N,), or 0-dim if additive, nats."""
        return _run([self], input)

    def reverse(self, output: Tensor) -> Tensor:
        """Undo ``forward``."""
        return _run_reversed([self], output)


def _run(flows: Sequence[Any], x: Tensor) -> tuple[Tensor, Tensor]:
    if bool(torch.stack([flow.actnorm.initialized for flow in flows]).all()):
        return _run_initialized(flows, x)
    total = x.new_zeros(())
    for flow in flows:
        flow.actnorm.initialize_once(x)
        x, logdet = _run_initialized([flow], x)
        total = total + logdet
    return x, total


def _run_initialized(flows: Sequence[Any], x: Tensor) -> tuple[Tensor, Tensor]:
    weights, mixed = weights_of([flow.invconv for flow in flows], inverse=False)
    scale = torch.stack([flow.actnorm.scale.flatten() for flow in flows])
    loc = torch.stack([flow.actnorm.loc.flatten() for flow in flows])
    weights = weights * scale[:, None]
    biases = torch.einsum("nij,nj->ni", weights, loc)
    total = pixels(x) * (mixed + torch.log(scale.abs()).sum())
    for flow, weight, bias in zip(flows, weights, biases, strict=True):
        x = ops.invertible_conv1x1(x, weight, bias)
        x, logdet = flow.coupling(x)
        total = total if logdet is None else total + logdet
    return x, total


def _run_reversed(flows: Sequence[Any], z: Tensor) -> Tensor:
    weights, _ = weights_of([flow.invconv for flow in flows], inverse=True)
    for flow, weight in reversed(list(zip(flows, weights, strict=True))):
        z = flow.coupling.reverse(z)
        weight = weight / flow.actnorm.scale.view(-1, 1)
        z = ops.invertible_conv1x1(z, weight, -flow.actnorm.loc.flatten())
    return z


class Block(nn.Module):
    """One scale: squeeze, steps of :class:`Flow`, and half of the channels factored out.

    Args:
        in_channel: Channels before the squeeze.
        n_flow: Steps.
        split: Whether half of the channels go on; otherwise all are latent.
        affine: See :class:`AffineCoupling`.
        conv_lu: See :class:`Flow`.
    """

    def __init__(
        self,
        in_channel: int,
        n_flow: int,
        split: bool = True,
        affine: bool = True,
        conv_lu: bool = True,
    ) -> None:
        super().__init__()
        channels = 4 * in_channel
        self.flows = nn.ModuleList(Flow(channels, affine, conv_lu) for _ in range(n_flow))
        self.split = split
        half = channels // 2
        self.prior = ZeroConv2d(half, channels) if split else ZeroConv2d(channels, 2 * channels)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor | float, Tensor, Tensor]:
        """Return what goes on, log-determinant, log-density (N,) of the latent, and the latent."""
        out, logdet = _SQUEEZE(input)[0], 0.0
        if len(self.flows):
            out, logdet = _run(list(self.flows), out)
        if not self.split:
            return out, logdet, ops.gaussian_log_prob(out, params=self._top(out)), out
        out, latent = out.chunk(2, 1)
        params = self.prior(out).to(latent.dtype)
        return out, logdet, ops.gaussian_log_prob(latent, params=params), latent

    def reverse(
        self, output: Tensor, eps: Tensor | None = None, reconstruct: bool = False
    ) -> Tensor:
        """Return the input of ``forward``.

        Args:
            output: What went on; of a block without a split, anything of the latent's shape.
            eps: Standard normal noise for the latent; with ``reconstruct`` the latent itself.
            reconstruct: See ``eps``.

        Raises:
            ValueError: If there is no ``eps``.
        """
        if eps is None:
            raise ValueError("Block: eps must be given, got None")
        latent = eps
        if not reconstruct:
            params = self.prior(output) if self.split else self._top(output)
            latent = ops.affine_coupling(eps, params.to(eps.dtype), layout="shift_scale")[0]
        z = torch.cat([output, latent], 1) if self.split else latent
        return _SQUEEZE.inverse(_run_reversed(list(self.flows), z) if len(self.flows) else z)[0]

    def _top(self, latent: Tensor) -> Tensor:
        return self.prior(torch.zeros_like(latent))


class Glow(nn.Module):
    """Glow in the way of rosinality, whose checkpoints it loads.

    A leading ``module.`` of all keys, which ``nn.DataParallel`` leaves, is dropped on loading.

    Args:
        in_channel: Channels of the images.
        n_flow: Steps of a block.
        n_block: Blocks; sides are multiples of ``2 ** n_block``.
        affine: See :class:`AffineCoupling`.
        conv_lu: See :class:`Flow`; the last block has LU convolutions anyhow, as with rosinality.

    Raises:
        ValueError: If there is no block, or the sides of an image do not fit.

    Source:
        Kingma and Dhariwal, Glow, 2018, arXiv:1807.03039.
    """

    def __init__(
        self,
        in_channel: int,
        n_flow: int,
        n_block: int,
        affine: bool = True,
        conv_lu: bool = True,
    ) -> None:
        super().__init__()
        if n_block < 1:
            raise ValueError(f"Glow: n_block must be at least 1, got {n_block}")
        channels = [in_channel * 2**i for i in range(n_block)]
        blocks = [Block(c, n_flow, affine=affine, conv_lu=conv_lu) for c in channels[:-1]]
        self.blocks = nn.ModuleList([*blocks, Block(channels[-1], n_flow, False, affine)])
        self.register_load_state_dict_pre_hook(_drop_module)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor | float, list[Tensor]]:
        """Return log-density (N,) of the latents, log-determinant, and the latents of the blocks.

        Their sum is the log-density of the images, in nats. The log-determinant is (N,), or 0-dim
        if additive.
        """
        log_p: Tensor | float = 0.0
        logdet: Tensor | float = 0.0
        latents: list[Tensor] = []
        for block in self.blocks:
            input, more, density, latent = block(input)
            logdet, log_p = logdet + more, log_p + density
            latents.append(latent)
        return torch.as_tensor(log_p), logdet, latents

    def reverse(self, z_list: Sequence[Tensor], reconstruct: bool = False) -> Tensor:
        """Return images of noise, or with ``reconstruct`` of the latents that ``forward`` gave."""
        if len(z_list) != len(self.blocks):
            raise ValueError(
                f"Glow: z_list must have {len(self.blocks)} entries, got {len(z_list)}"
            )
        x = z_list[-1]
        for block, z in zip(reversed(self.blocks), reversed(z_list), strict=True):
            x = block.reverse(x, z, reconstruct)  # type: ignore[operator]
        return x


def _drop_module(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    wrapped = f"{prefix}module."
    if not all(key.startswith(wrapped) for key in state if key.startswith(prefix)):
        return
    for key in [key for key in state if key.startswith(wrapped)]:
        state[prefix + key.removeprefix(wrapped)] = state.pop(key)
