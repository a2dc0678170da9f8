"""Deterministic parameters and inputs, reproducible with numpy alone (no network code needed).

fill(names_and_shapes, salt)  -> {official state-dict name: float32 array}
waves(shape, seed)            -> smooth multi-channel pictures / clips, float32
noise(shape, seed)            -> white noise, float32
"""

import zlib

import numpy as np


def fill_one(name, shape, salt):
    shape = tuple(int(s) for s in shape)
    u = np.random.default_rng(zlib.crc32((salt + name).encode("utf-8"))).standard_normal(shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_mean":
        v = 0.1 * u
    elif leaf == "running_var":
        v = 1.0 + 0.25 * np.tanh(u)
    elif leaf in ("A_log", "A_b_log"):  # state-space decay, (channels, states)
        v = np.log(np.arange(1, shape[1] + 1))[None] + 0.05 * u
    elif leaf in ("D", "D_b"):  # state-space skip
        v = 1.0 + 0.1 * u
    elif name.endswith(("dt_proj.bias", "dt_proj_b.bias")):
        v = -3.0 + 0.5 * u
    elif leaf in ("pos_embed", "cls_token", "temporal_pos_embedding"):
        v = 0.5 * u
    elif leaf == "bias":
        v = 0.05 * u
    elif len(shape) == 1:  # normalisation gains
        v = 1.0 + 0.1 * u
    else:  # matrices and convolution kernels
        fan_in = int(np.prod(shape[1:]))
        gain = 1.4 if ".features." in "." + name else 1.0
        v = gain / np.sqrt(fan_in) * u
    return v.astype(np.float32)


def fill(names_and_shapes, salt):
    return {n: fill_one(n, s, salt) for n, s in names_and_shapes}


def waves(shape, seed, k=24, fmax=14, period=448):
    """(B, C, H, W) or (B, C, T, H, W): sums of k plane waves; every picture gets its own bright disc."""
    r = np.random.default_rng(seed)
    B, C, H, W = shape[0], shape[1], shape[-2], shape[-1]
    T = shape[2] if len(shape) == 5 else 1
    i = np.arange(H)[:, None] / period
    j = np.arange(W)[None, :] / period
    out = np.zeros((B, C, T, H, W))
    for b in range(B):
        fy = r.integers(-fmax, fmax + 1, size=k)
        fx = r.integers(-fmax, fmax + 1, size=k)
        ph = r.uniform(0, 2 * np.pi, size=(C, k))
        sp = r.uniform(-0.6, 0.6, size=k)
        cy, cx, rad = r.uniform(0.25, 0.75) * H, r.uniform(0.25, 0.75) * W, r.uniform(0.12, 0.22) * H
        vy, vx = r.uniform(-0.04, 0.04, size=2) * H
        for t in range(T):
            for c in range(C):
                acc = 0.0
                for n in range(k):
                    acc = acc + np.cos(2 * np.pi * (fy[n] * i + fx[n] * j) + ph[c, n] + sp[n] * t)
                d2 = (np.arange(H)[:, None] - cy - vy * t) ** 2 + (np.arange(W)[None, :] - cx - vx * t) ** 2
                out[b, c, t] = acc * np.sqrt(1.0 / k) + 2.5 * np.exp(-d2 / (2 * rad * rad)) * (1 if c % 2 == 0 else -1)
    out = out.reshape(shape)
    return out.astype(np.float32)


def noise(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
