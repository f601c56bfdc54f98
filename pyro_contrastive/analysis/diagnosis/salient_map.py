"""The answer to "my salient map is one blob": whether the model, the data or the biology."""

from __future__ import annotations

from pyro_contrastive.analysis.diagnosis.measurements import (
    NATS_USED,
    PREDICTABLE,
    SEPARATED,
    SEPARATED_WELL,
    STRUCTURED,
    TOO_MUCH_IN_S,
    Finding,
    Measurements,
    Structure,
    predicts,
    raise_or_add,
)

__all__ = ["salient_map"]

NAME = "salient map"
NOTHING_TO_FIND = (
    "genes that vary between conditions, more cells, or a contrast that is expected to show; no "
    "setting of the model makes up for it"
)


def salient_map(measured: Measurements) -> Finding:
    """Say what a map of the salient latent shows, and why.

    It goes through what can be the case, in this order: the salient latent has collapsed (and
    then: there is nothing to find, or it went into z, or the model has not found it); it does not
    tell treated cells from others, be it for want of a difference or of a penalty; it does, and the
    treated cells fall into groups, or do not.
    """
    n_used = int(measured.usage.query("latent == 'salient'")["used"].sum())
    if n_used == 0 or measured.salient_nats < NATS_USED or measured.structure is None:
        return _collapsed(measured, n_used)
    if float(measured.condition_in_s["excess"]) < SEPARATED_WELL:
        return _overlapping(measured, measured.structure)
    return _apart(measured, measured.structure)


def _overlapping(measured: Measurements, structure: Structure) -> Finding:
    """Say why treated cells do not lie apart from background cells."""
    excess, n_groups = structure.excess, structure.n_groups
    separation = float(measured.condition_in_s["excess"])
    if separation < SEPARATED and not predicts(measured.condition_in_x):
        seen = measured.condition_in_x
        return Finding(
            NAME,
            excess,
            "look",
            "One blob: treated and background cells lie together in s, and there may be nothing "
            "salient to find. Even from the data as the encoders see them a probe can hardly tell "
            f"them apart ({seen['balanced_accuracy']:.0%} right, chance is {seen['chance']:.0%}). "
            "What s holds is variation that both populations have.",
            NOTHING_TO_FIND,
        )
    if separation < SEPARATED:
        return Finding(
            NAME,
            excess,
            "look",
            "s is used, but background cells lie among the treated ones: a map of all cells is one "
            "blob. The decoder never sees s of background cells, so nothing keeps it apart unless "
            "a penalty does. Within the treated cells "
            + (f"there are about {n_groups} groups." if excess > STRUCTURED else "all look alike."),
            f"map the treated cells alone; "
            f"{raise_or_add(measured, 'Wasserstein', 'wasserstein_penalty=1')}",
        )
    return Finding(
        NAME,
        excess,
        "look",
        "s tells treated from background cells in part: the two overlap on a map, as they do where "
        "some treated cells have not responded, or the response is small beside the noise of a "
        "cell.",
        "more epochs, more genes that respond; EscapingPerturbation as salient_prior, if some "
        "cells escape their treatment",
    )


def _apart(measured: Measurements, structure: Structure) -> Finding:
    """Say how treated cells lie among themselves, once they lie apart from background cells."""
    excess, n_groups = structure.excess, structure.n_groups
    if excess <= STRUCTURED:
        return Finding(
            NAME,
            excess,
            "good",
            "s carries the condition: treated cells lie apart from background cells. Among "
            "themselves they form one cloud, so that a map of treated cells alone is one blob, "
            "which here is a finding: the response is there, and differs by degrees at most.",
            "for subgroups: more variable genes, more cells, a larger n_salient_latent, smaller "
            "weights of penalties on s; colour the map by get_treatment_effect",
        )
    arranged = [
        name
        for name, found in measured.shared_in_s.items()
        if float(found["excess"]) > TOO_MUCH_IN_S
    ]
    if arranged:
        return Finding(
            NAME,
            excess,
            "look",
            f"No blob: treated cells fall into about {n_groups} groups in s, but these follow "
            f"{' and '.join(arranged)}, which both conditions share: rather leakage than response.",
            f"{raise_or_add(measured, 'HSIC', 'penalties=[HSIC(30.0)]')}; fewer salient dimensions",
        )
    return Finding(
        NAME,
        excess,
        "good",
        f"No blob: s tells treated from background cells, and the treated cells fall into about "
        f"{n_groups} groups.",
        "differential_expression between these groups",
    )


def _collapsed(measured: Measurements, n_used: int) -> Finding:
    """Say why a salient latent that says nothing says nothing."""
    how = (
        "no dimension of s says anything of a cell"
        if n_used == 0
        else f"the decoder makes nothing of s ({measured.salient_nats:.1f} nats per treated cell)"
    )
    value = measured.salient_nats
    seen, leaked = measured.condition_in_x, measured.condition_in_z
    if not predicts(seen):
        return Finding(
            NAME,
            value,
            "look",
            f"One blob: the salient latent has collapsed ({how}). There may be nothing salient to "
            "find: even from the data as the encoders see them, a probe can hardly tell treated "
            f"from background cells ({seen['balanced_accuracy']:.0%} right, chance is "
            f"{seen['chance']:.0%}).",
            NOTHING_TO_FIND,
        )
    if predicts(leaked) and float(leaked["excess"]) > PREDICTABLE:
        return Finding(
            NAME,
            value,
            "bad",
            f"One blob: the salient latent has collapsed ({how}). The response is in the data, and "
            "went into the background latent: from z the condition can be told "
            f"({leaked['balanced_accuracy']:.0%} right).",
            f"{raise_or_add(measured, 'MMD', 'penalties=[MMD(30.0)]')}, which keeps it out of z, "
            'or from_preset(adata, "separated"); fewer background dimensions',
        )
    pinned = [
        name for name in ("Wasserstein", "NarrowSalient", "HSIC") if name in measured.penalties
    ]
    less = f"lower the weight of {' and '.join(pinned)}; " if pinned else ""
    return Finding(
        NAME,
        value,
        "bad",
        f"One blob: the salient latent has collapsed ({how}). The data do tell the conditions "
        f"apart ({seen['balanced_accuracy']:.0%} right), but neither latent does: the model has "
        "not found it.",
        f"{less}more epochs; a slower KL warm-up (n_epochs_kl_warmup); another likelihood",
    )
