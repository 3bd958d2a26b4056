# SPDX-License-Identifier: MIT
"""Equation 1 of the paper: the multi-instance InfoNCE loss.

An anchor z_i is compared with every key of a queue. Keys with its label are its positives P_i, all
others its negatives N_i. The loss is small when the positives hold most of the similarity:

                        sum_{p in P_i} exp(z_i . z_p / tau)
    L = -E_i log -------------------------------------------------------------
                 sum_{p in P_i} exp(z_i . z_p / tau) + sum_{n in N_i} exp(z_i . z_n / tau)

It pulls an anchor towards its positives as a group: one near positive is enough for a small loss. (SupCon,
Khosla et al. 2020, averages over the positives outside the logarithm and pulls towards each of them.)

    z (B, D), labels (B,)      the anchors, from the encoder that is trained
    keys (K, D), key_labels    the queue, from the EMA encoder in earlier iterations; no gradient flows there

To use it elsewhere, copy this file:

    import torch
    from losses import multi_instance_info_nce
    z = torch.nn.functional.normalize(torch.randn(4, 8, requires_grad=True), dim=1)
    keys = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
    loss = multi_instance_info_nce(z, torch.tensor([0, 1, 0, 1]), keys, torch.tensor([0, 0, 1, 1, 1, 0]))
    loss.backward()

`python losses.py` works one example through, step by step.
"""
import torch


def multi_instance_info_nce(z, labels, keys, key_labels, temperature=0.07):
    """Eq. 1, the mean over those anchors that have a positive; a scalar >= 0, in float32 or better.

    z (B, D) and keys (K, D) are L2-normalised by the projection head; labels (B,) and key_labels (K,) are
    integers. An anchor whose label is nowhere among the keys is left out: its numerator would be log 0.
    With no anchor left (K = 0 on the first step, say) the loss is a zero that can be differentiated.

    Raises ValueError when the shapes do not fit or the temperature is not positive.
    """
    if z.ndim != 2 or keys.ndim != 2 or z.shape[1] != keys.shape[1]:
        raise ValueError(f"z (B, D) and keys (K, D) must share D, got {tuple(z.shape)} and {tuple(keys.shape)}")
    if labels.shape != z.shape[:1] or key_labels.shape != keys.shape[:1]:
        raise ValueError(f"one label per row: got {tuple(labels.shape)} labels for {len(z)} anchors "
                         f"and {tuple(key_labels.shape)} for {len(keys)} keys")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    with torch.autocast(z.device.type, enabled=False):                   # half precision is too coarse for exp(z / 0.07)
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        positive = labels[:, None] == key_labels[None, :]                # (B, K), P_i as a mask; N_i is the rest
        has_positive = positive.any(dim=1)                               # (B,)
        if not has_positive.any():
            return z[:0].sum()                                           # zero, with a (zero) gradient for z
        positive = positive[has_positive]
        similarity = z[has_positive] @ keys.detach().to(z.dtype).T / temperature  # (anchors, K), z_i . z_j / tau
        # log of a sum of exp, without exp: exact where exp(1 / 0.01) would overflow or every term underflow.
        numerator = similarity.masked_fill(~positive, float("-inf")).logsumexp(dim=1)
        denominator = similarity.logsumexp(dim=1)                        # positives and negatives: every key
        return (denominator - numerator).mean()


def main():
    """The lesson: Eq. 1 by hand for one anchor and six keys, then as the positives come closer."""
    tau = 0.5
    degrees = torch.tensor([10., 40., 80., 100., 150., 180.])            # where the keys lie, seen from the anchor
    key_labels = torch.tensor([1, 0, 1, 0, 0, 0])
    on_circle = lambda angles: torch.stack([torch.cos(torch.deg2rad(angles)), torch.sin(torch.deg2rad(angles))], dim=1)
    z, label, keys = on_circle(torch.tensor([0.])), torch.tensor([1]), on_circle(degrees)

    print(f"One anchor with label 1 at 0 degrees, six keys on the unit circle, temperature {tau}.\n")
    print("key  label  degrees   z_i . z_j   exp(z_i . z_j / tau)")
    weight = torch.exp(z @ keys.T / tau)[0]
    for j in range(6):
        print(f"{j:3}  {key_labels[j]:5}  {degrees[j]:7.0f}  {(z @ keys.T)[0, j]:10.3f}  {weight[j]:21.3f}"
              f"   {'positive' if key_labels[j] == 1 else ''}")
    top, bottom = weight[key_labels == 1].sum(), weight.sum()
    print(f"\nsum over positives {top:.3f}, over all keys {bottom:.3f}")
    print(f"-log({top:.3f} / {bottom:.3f}) = {-torch.log(top / bottom):.4f}; "
          f"multi_instance_info_nce gives {multi_instance_info_nce(z, label, keys, key_labels, tau):.4f}")
    print(f"chance (all similarities equal): -log(2 / 6) = {-torch.log(torch.tensor(2 / 6)):.4f}")

    print("\nThe two positives come closer, the negatives stay:")
    for shrink in (1, .75, .5, .25, 0):
        moved = torch.where(key_labels == 1, degrees * shrink, degrees)
        loss = multi_instance_info_nce(z, label, on_circle(moved), key_labels, tau)
        print(f"  positives at {moved[0]:4.1f} and {moved[2]:4.1f} degrees: loss {loss:.4f}")
    print("\nNo key with the anchor's label: the anchor is left out, loss",
          multi_instance_info_nce(z, torch.tensor([7]), keys, key_labels, tau).item())


if __name__ == "__main__":
    main()
