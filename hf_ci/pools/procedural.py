"""The built-in pool: images made from nothing, with the statistics of natural ones, deterministic from the seed.

Dead leaves (Lee, Mumford and Huang, "Occlusion models for natural images", IJCV 2001; as training data in Baradad et
al., "Learning to see by looking at noise", NeurIPS 2021) over fractal noise: occlusion, edges at all scales, 1/f
spectra, correlated colours. No photo is shipped and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def fractal(rng: np.random.Generator, size: int, alpha: float) -> np.ndarray:
    """(size, size) noise with amplitude spectrum 1/f^alpha, zero mean, unit deviation."""
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    f[0, 0] = 1
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * f**-alpha, s=(size, size))
    return np.asarray((noise - noise.mean()) / (noise.std() + 1e-8))


def palette(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, 3) colours around one hue of the image, as photos have: correlated channels, few saturated colours."""
    key = rng.uniform(0.2, 0.8, 3)
    grey = rng.normal(0, 0.22, (n, 1))
    tint = rng.normal(0, rng.uniform(0.03, 0.18), (n, 3))
    return np.clip(key + grey + tint, 0, 1)


def leaf(rng: np.random.Generator, size: int, radius: float) -> np.ndarray:
    """(size, size) mask of one shape: ellipse, rectangle, triangle-like half plane cut, or a wavy blob."""
    y, x = np.mgrid[0:size, 0:size]
    cx, cy, angle = *rng.uniform(-0.1, 1.1, 2) * size, rng.uniform(0, np.pi)
    u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
    v = (-(x - cx) * np.sin(angle) + (y - cy) * np.cos(angle)) * rng.uniform(1, 3)
    match rng.integers(4):
        case 0:
            return np.asarray(u**2 + v**2 < radius**2)
        case 1:
            return np.asarray(np.maximum(np.abs(u), np.abs(v)) < radius)
        case 2:
            return np.asarray((v > -radius / 2) & (np.abs(u) * 1.2 + v < radius))
        case _:
            wave = 1 + 0.3 * np.sin(rng.integers(2, 7) * np.arctan2(v, u) + angle)
            return np.asarray(u**2 + v**2 < (radius * wave) ** 2)


def image(rng: np.random.Generator, size: int) -> np.ndarray:
    """One image, (size, size, 3) uint8."""
    base, other = palette(rng, 2)
    blend = np.clip(0.5 + 0.25 * fractal(rng, size, rng.uniform(0.8, 2.2)), 0, 1)[..., None]
    if rng.random() < 0.3:  # a horizon: sky above, ground below
        blend = (np.arange(size)[:, None, None] > rng.uniform(0.3, 0.7) * size) * 0.8 + 0.2 * blend
    canvas = base * blend + other * (1 - blend)
    texture = fractal(rng, size, rng.uniform(0.5, 1.5))[..., None]

    count = int(np.exp(rng.uniform(np.log(3), np.log(80))))
    # Log-uniform radii: scale-free, with fewer specks than the r^-3 of a megapixel image, which vanish at 64 pixels.
    radii = np.exp(rng.uniform(np.log(size / 24), np.log(size / rng.uniform(1.8, 4)), count))
    for colour, radius in zip(palette(rng, count), sorted(radii, reverse=rng.random() < 0.5)):
        mask = leaf(rng, size, radius)[..., None]
        rough = rng.uniform(0, 0.12)
        canvas = np.where(mask, colour + rough * texture, canvas)

    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    light = 1 + rng.normal(0, 0.3) * x + rng.normal(0, 0.3) * y
    grain = rng.normal(0, rng.uniform(0, 0.03), canvas.shape)
    lit: np.ndarray = np.clip(canvas * light[..., None] + grain, 0, 1) * 255
    return lit.round().astype(np.uint8)


def images(seed: int, size: int) -> Iterator[np.ndarray]:
    """Endless images; the i-th depends on (seed, i, size) alone."""
    i = 0
    while True:
        yield image(np.random.default_rng([seed, i]), size)
        i += 1
