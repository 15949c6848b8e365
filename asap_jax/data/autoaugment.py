"""Batched AutoAugment (Cubuk et al., 2019, arXiv:1805.09501) on the device.

Each image draws one of the policy's 25 sub-policies: two operations applied in sequence, each with
a probability and a magnitude. Magnitudes have ten levels from none up to: shear 0.3, translation
150/331 of the image, rotation 30 degrees, factor 1 -+ 0.9, 4 bits, threshold 0. Operations with a
direction draw it at random.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asap_jax.data import operations
from asap_jax.data.operations import Operation

# NAME.p@m: probability .p (or 1), magnitude m in 0..9. Names: see `make_operation`.
POLICIES = {
    "cifar10": """
        I.1 C.2@6;     R.7@2 TX.3@9;   Sh.8@1 Sh.9@3;  SY.5@8 TY.7@9;  A.5 E.9
        SY.2@7 P.3@7;  Co.4@3 B.6@7;   Sh.3@9 B.7@9;   E.6 E.5;        C.6@7 Sh.6@5
        Co.7@7 TX.5@8; E.3 A.4;        TY.4@3 Sh.2@6;  B.9@6 Co.2@8;   So.5@2 I.0
        E.2 A.6;       E.2 E.6;        Co.9@9 E.6;     A.8 So.2@8;     B.1@3 Co.7@0
        So.4@5 A.9;    TY.9@9 TY.7@9;  A.9 So.8@3;     E.8 I.1;        TY.7@9 A.9
        """,
    "svhn": """
        SX.9@4 I.2;    SY.9@8 I.7;     E.6 So.6@6;     I.9 E.6;        E.6 R.9@3
        SX.9@4 A.8;    SY.9@8 I.4;     SY.9@5 So.2@6;  I.9 A.8;        E.6 R.9@3
        SX.9@4 So.3@3; SY.8@8 I.7;     E.9 TY.6@6;     I.9 E.6;        C.3@3 R.8@4
        I.8 TY.0@2;    SY.7@6 So.4@8;  I.6 R.8@4;      SY.3@7 TX.9@3;  SX.1@6 I.6
        So.7@2 TY.6@7; SY.8@4 I.8;     SX.7@9 TY.8@3;  SY.8@5 A.7;     SX.7@2 I.1
        """,
    "imagenet": """
        P.4@8 R.6@9;   So.6@5 A.6;     E.8 E.6;        P.6@7 P.6@6;    E.4 So.2@4
        E.4 R.8@8;     So.6@3 E.6;     P.8@5 E1;       R.2@3 So.6@8;   E.6 P.4@6
        R.8@8 Co.4@0;  R.4@9 E.6;      E.0 E.8;        I.6 E1;         Co.6@4 C1@8
        R.8@8 Co1@2;   Co.8@8 So.8@7;  Sh.4@7 I.6;     SX.6@5 E1;      Co.4@0 E.6
        E.4 So.2@4;    So.6@5 A.6;     I.6 E1;         Co.6@4 C1@8;    E.8 E.6
        """,
}


def sub_policies(policy: str) -> list[list[tuple[str, float, int]]]:
    """[sub-policy][first, second] -> (name, probability, magnitude); magnitude 0 if unset."""

    def parsed(word):
        match = re.fullmatch(r"([A-Za-z]+)(1|\.\d)(?:@(\d))?", word)
        assert match is not None, word
        name, probability, magnitude = match.groups()
        return name, float(probability), int(magnitude or 0)

    pairs = re.split("[;\n]", POLICIES[policy].strip())
    return [[parsed(word) for word in pair.split()] for pair in pairs]


def auto_augment(images, policy: str, key):
    """uint8 [N, H, W, C] -> uint8 [N, H, W, C], with independent draws per image.

    Single-channel images follow Pillow's grey mode: `color` leaves them unchanged.

    Args:
      images: with one or three channels.
      policy: a key of `POLICIES`.
      key: PRNG key for all draws.
    """
    count, height, width, _ = images.shape
    index, happens, negative = draw(policy, count, key)
    form = jnp.where(happens, 1 + negative, 0)
    table = jax.tree.map(jnp.asarray, _table(policy, height, width))
    drawn = jax.tree.map(lambda field: field[index, jnp.arange(2)[:, None], form], table)
    # A scan over the two operations, so that the program contains them only once.
    return lax.scan(lambda x, operation: (operations.apply(x, operation), None), images, drawn)[0]


def draw(policy: str, count: int, key):
    """Draws the augmentation of each of `count` images.

    Returns:
      index: int32 [N], the sub-policy.
      happens: bool [2, N], whether its first and second operations are applied.
      negative: bool [2, N], the direction, for operations that have one.
    """
    key_index, key_happens, key_sign = jax.random.split(key, 3)
    probabilities = jnp.array([[p for _, p, _ in pair] for pair in sub_policies(policy)])
    index = jax.random.randint(key_index, (count,), 0, len(probabilities))
    happens = jax.random.bernoulli(key_happens, probabilities[index].T)
    negative = jax.random.bernoulli(key_sign, shape=(2, count))
    return index, happens, negative


@functools.cache
def _table(policy, height, width) -> Operation:
    """All operations a policy can draw for this image size: fields [sub-policies, 2, 3, ...].

    The axis of size 3 holds the identity, the operation, and the operation in the other direction.
    """
    pairs = sub_policies(policy)
    flat = [
        operation
        for pair in pairs
        for name, _, magnitude in pair
        for operation in (
            Operation(),
            make_operation(name, magnitude, 1, height, width),
            make_operation(name, magnitude, -1, height, width),
        )
    ]

    def stacked(*fields):
        return np.stack(fields).reshape(len(pairs), 2, 3, *np.shape(fields[0]))

    return jax.tree.map(stacked, *flat)


def make_operation(name, magnitude, sign, height, width) -> Operation:
    """The operation for a policy entry; `sign` is 1 or -1."""
    share = magnitude / 9
    amount = sign * share
    factor = 1 + 0.9 * amount
    match name:
        case "I":
            return operations.invert()
        case "A":
            return operations.autocontrast()
        case "E":
            return operations.equalize()
        case "P":
            return operations.posterize(8 - round(4 * share))
        case "So":
            return operations.solarize(255 * (9 - magnitude) / 9)
        case "B":
            return operations.brightness(factor)
        case "C":
            return operations.contrast(factor)
        case "Co":
            return operations.color(factor)
        case "Sh":
            return operations.sharpness(factor)
        case "SX":
            return operations.shear_x(0.3 * amount)
        case "SY":
            return operations.shear_y(0.3 * amount)
        case "TX":
            return operations.translate_x(150 / 331 * width * amount)
        case "TY":
            return operations.translate_y(150 / 331 * height * amount)
        case "R":
            return operations.rotate(30 * amount, height, width)
    raise ValueError(f"no operation is called {name!r}")
