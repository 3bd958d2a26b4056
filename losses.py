# SPDX-License-Identifier: MIT
"""Equation 1 of the paper: the multi-instance InfoNCE loss.

Each anchor z_i is compared with every key in a queue. Keys with the anchor's label are its
positives P_i, all other keys are its negatives N_i:

                        sum_{p in P_i} exp(z_i . z_p / tau)
    L = -E_i log -------------------------------------------------------------
                 sum_{p in P_i} exp(z_i . z_p / tau) + sum_{n in N_i} exp(z_i . z_n / tau)

It pulls an anchor towards its positives as a group, most strongly towards the closest. (SupCon,
Khosla et al. 2020, averages the logarithm over the positives and pulls towards each of them.)

`python losses.py` works through one example. To use it elsewhere, copy this file:

    import torch
    from losses import multi_instance_info_nce
    z = torch.nn.functional.normalize(torch.randn(4, 8, requires_grad=True), dim=1)
    keys = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
    labels, key_labels = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1, 1, 0])
    multi_instance_info_nce(z, labels, keys, key_labels).backward()
"""

import torch


def multi_instance_info_nce(z, labels, keys, key_labels, temperature=0.07):
    """Equation 1, averaged over the anchors that have a positive: a scalar >= 0.

    z (B, D)       anchors, L2-normalised, from the encoder that is trained
    keys (K, D)    the queue, L2-normalised, from the EMA encoder; they receive no gradient
    labels (B,), key_labels (K,)    integers

    An anchor without a positive is left out: its numerator is 0, and log 0 is undefined. If no
    anchor is left (at the first step the queue is empty), loss and gradient are 0. Raises
    ValueError for labels of another shape or type.
    """
    fits = labels.shape == z.shape[:1] and key_labels.shape == keys.shape[:1]
    if not fits or labels.is_floating_point() or key_labels.is_floating_point():
        raise ValueError("expected z (B, D), keys (K, D) and integer labels (B,), key_labels (K,)")

    positive = labels[:, None] == key_labels[None, :]  # (B, K): P_i as a mask
    has_positive = positive.any(dim=1)  # (B,)
    if not has_positive.any():
        return 0 * z.sum()
    z = z[has_positive]
    positive = positive[has_positive]

    # Eq. 1. logsumexp subtracts the maximum first: exp alone overflows at a small tau.
    similarity = z @ keys.detach().T / temperature  # z_i . z_j / tau
    log_numerator = similarity.masked_fill(~positive, float("-inf")).logsumexp(dim=1)
    log_denominator = similarity.logsumexp(dim=1)  # P_i and N_i: every key
    return (log_denominator - log_numerator).mean()


def unit_vectors(degrees):
    """Points on the unit circle at these angles: (N,) -> (N, 2)."""
    radians = torch.deg2rad(degrees)
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def main():
    """The lesson: Equation 1 by hand, then with positives that move closer."""
    tau = 0.5
    z = unit_vectors(torch.tensor([0.0]))
    degrees = torch.tensor([10.0, 40.0, 80.0, 100.0, 150.0, 180.0])
    key_labels = torch.tensor([1, 0, 1, 0, 0, 0])
    cosines = (z @ unit_vectors(degrees).T)[0]
    weights = torch.exp(cosines / tau)
    print(f"One anchor with label 1 at 0 degrees, six keys on the unit circle, temperature {tau}\n")
    print("label  degrees   z_i . z_j   exp(z_i . z_j / tau)")
    for row in zip(key_labels, degrees, cosines, weights):
        print("{:5}  {:7.0f}  {:10.3f}  {:21.3f}".format(*row))

    positives = weights[key_labels == 1].sum()
    loss = -torch.log(positives / weights.sum())
    print(f"\n-log(sum over positives {positives:.3f} / over all {weights.sum():.3f}) = {loss:.4f}")
    print("\nmulti_instance_info_nce, as the two positives move closer and the negatives stay:")
    for shrink in (1, 0.5, 0):
        moved = torch.where(key_labels == 1, degrees * shrink, degrees)
        loss = multi_instance_info_nce(z, key_labels[:1], unit_vectors(moved), key_labels, tau)
        print(f"  positives at {moved[0]:2.0f} and {moved[2]:2.0f} degrees: loss {loss:.4f}")


if __name__ == "__main__":
    main()
