"""PaPr once more, in NumPy: slow, obvious, and independent of everything in src/papr.

Bicubic resize by its definition, ranking by sorting pairs, a plain ViT forward by hand.
"""

import math

import numpy as np


def cubic_weight(distance: float, a: float = -0.75) -> float:
    """Keys' cubic convolution kernel."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    if d < 2:
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return 0.0


def bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (h, w) to (height, width): corners aligned, borders repeated."""
    h, w = image.shape
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = i * (h - 1) / (height - 1) if height > 1 else 0.0
            x = j * (w - 1) / (width - 1) if width > 1 else 0.0
            top, left = math.floor(y), math.floor(x)
            for m in range(top - 1, top + 3):
                for n in range(left - 1, left + 3):
                    value = image[min(max(m, 0), h - 1), min(max(n, 0), w - 1)]
                    result[i, j] += value * cubic_weight(y - m) * cubic_weight(x - n)
    return result


def aligned_weights(before: int, after: int) -> np.ndarray:
    """Weights (after, before) of a linear resize of one axis whose ends stay where they are."""
    weights = np.zeros((after, before))
    for i in range(after):
        place = i * (before - 1) / (after - 1) if after > 1 else 0.0
        left = min(math.floor(place), before - 1)
        right = min(left + 1, before - 1)
        weights[i, left] += 1 - (place - left)
        weights[i, right] += place - left
    return weights


def trilinear(volume: np.ndarray, frames: int, height: int, width: int) -> np.ndarray:
    """Resize (..., t, h, w) to (..., frames, height, width): corners aligned."""
    t, h, w = volume.shape[-3:]
    return np.einsum(
        "at,bh,cw,...thw->...abc",
        aligned_weights(t, frames),
        aligned_weights(h, height),
        aligned_weights(w, width),
        volume.astype(np.float64),
        optimize=True,
    )


def motion(clip: np.ndarray, tubelet: int, patch: int) -> np.ndarray:
    """How much each patch of a clip (C, T, H, W) changed since the last tubelet: (t, h, w)."""
    _, frames, height, width = clip.shape
    grid = (frames // tubelet, height // patch, width // patch)
    result = np.zeros(grid)
    for t, y, x in np.ndindex(*grid):

        def part(which: int, y: int = y, x: int = x) -> np.ndarray:
            rows, columns = slice(y * patch, (y + 1) * patch), slice(x * patch, (x + 1) * patch)
            return clip[:, which * tubelet : (which + 1) * tubelet, rows, columns]

        now = max(t, 1)
        if grid[0] > 1:
            result[t, y, x] = np.abs(part(now) - part(now - 1)).mean()
    return result


def significance(features: np.ndarray, height: int, width: int) -> np.ndarray:
    """(B, C, h, w) to (B, height, width): resize every channel, then average them."""
    return np.stack(
        [
            np.mean([bicubic(channel, height, width) for channel in image], axis=0)
            for image in features.astype(np.float64)
        ]
    )


def ranking(scores: np.ndarray) -> list[int]:
    """Patch indices of one image, most significant first; of equals the lower index first."""
    flat = scores.reshape(-1)
    return [index for _, index in sorted((-value, index) for index, value in enumerate(flat))]


def kept(scores: np.ndarray, count: int) -> np.ndarray:
    """(B, count) kept patch indices, ascending."""
    return np.array([sorted(ranking(image)[:count]) for image in scores])


def layer_norm(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float = 1e-6
) -> np.ndarray:
    """Over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def gelu(x: np.ndarray) -> np.ndarray:
    """With the exact error function."""
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attention(x: np.ndarray, sd: dict[str, np.ndarray], prefix: str, heads: int) -> np.ndarray:
    """Multi-head self-attention of one image, tokens (N, C)."""
    tokens, channels = x.shape
    width = channels // heads
    qkv = x @ sd[f"{prefix}qkv.weight"].T + sd[f"{prefix}qkv.bias"]
    q, k, v = np.split(qkv, 3, axis=-1)
    out = np.zeros((tokens, channels))
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        logits = q[:, part] @ k[:, part].T / math.sqrt(width)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out[:, part] = weights / weights.sum(-1, keepdims=True) @ v[:, part]
    return out @ sd[f"{prefix}proj.weight"].T + sd[f"{prefix}proj.bias"]


def vit_logits(
    image: np.ndarray, sd: dict[str, np.ndarray], patch: int, heads: int, kept_patches: np.ndarray
) -> np.ndarray:
    """One image (3, H, W) through a plain ViT that sees only `kept_patches`: its logits.

    Pools the class token where there is one and the mean of the kept patches otherwise; with
    `fc_norm` in the weights it pools kept patches, class token left out (MAE fine-tuning).
    """
    sd = {name: value.astype(np.float64) for name, value in sd.items()}
    _, height, width = image.shape
    kernel = sd["patch_embed.proj.weight"].reshape(sd["patch_embed.proj.weight"].shape[0], -1)
    rows = [
        image[:, y : y + patch, x : x + patch].reshape(-1)
        for y in range(0, height, patch)
        for x in range(0, width, patch)
    ]
    patches = np.stack(rows).astype(np.float64) @ kernel.T + sd["patch_embed.proj.bias"]
    position = sd["pos_embed"][0]
    has_class = "cls_token" in sd
    tokens = (patches + position[int(has_class) :])[kept_patches]
    if has_class:
        tokens = np.concatenate([sd["cls_token"][0] + position[:1], tokens])
    depth = len({name.split(".")[1] for name in sd if name.startswith("blocks.")})
    for i in range(depth):
        block = f"blocks.{i}."
        normed = layer_norm(tokens, sd[block + "norm1.weight"], sd[block + "norm1.bias"])
        tokens = tokens + attention(normed, sd, block + "attn.", heads)
        normed = layer_norm(tokens, sd[block + "norm2.weight"], sd[block + "norm2.bias"])
        hidden = gelu(normed @ sd[block + "mlp.fc1.weight"].T + sd[block + "mlp.fc1.bias"])
        tokens = tokens + hidden @ sd[block + "mlp.fc2.weight"].T + sd[block + "mlp.fc2.bias"]
    if "fc_norm.weight" in sd:
        pooled = tokens[int(has_class) :].mean(0)
        pooled = layer_norm(pooled, sd["fc_norm.weight"], sd["fc_norm.bias"])
    else:
        tokens = layer_norm(tokens, sd["norm.weight"], sd["norm.bias"])
        pooled = tokens[0] if has_class else tokens.mean(0)
    return pooled @ sd["head.weight"].T + sd["head.bias"]
