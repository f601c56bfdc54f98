"""The answer to "my salient map is one blob": whether model, data or biology make it so."""

from __future__ import annotations

from pyro_contrastive.analysis.diagnosis.measurements import (
    SEPARATED,
    SEPARATED_WELL,
    STRUCTURED,
    TOO_MUCH_IN_S,
    Finding,
    Measurements,
    Structure,
    beats_shuffles,
    means_differ,
    predicts,
    raise_or_add,
    separated_preset,
    uses_salient,
)

__all__ = ["salient_map"]

NAME = "salient map"
NOTHING_TO_FIND = (
    "genes that vary between conditions, more cells, or a contrast with an expected effect; no "
    "setting of the model can replace these"
)
_ESCAPING = "; EscapingPerturbation as salient_prior, if some cells escape their treatment"


def salient_map(measured: Measurements) -> Finding:
    """Say what a map of the salient latent shows, and why.

    The cases are checked in this order. The salient latent has collapsed: there is nothing to find,
    or the response went into z, or the model has not found it. It does not separate treated cells
    from others, for lack of a difference or of a penalty. It does, and the treated cells form
    groups, or one cloud.
    """
    n_used = int(measured.usage.query("latent == 'salient'")["used"].sum())
    if n_used == 0 or not uses_salient(measured) or measured.structure is None:
        return _collapsed(measured, n_used)
    if float(measured.condition_in_s["excess"]) < SEPARATED_WELL:
        return _overlapping(measured, measured.structure)
    return _apart(measured, measured.structure)


def _overlapping(measured: Measurements, structure: Structure) -> Finding:
    """Say why treated cells do not separate from background cells."""
    excess, n_groups = structure.excess, structure.n_groups
    separation = float(measured.condition_in_s["excess"])
    apart = separation >= SEPARATED and predicts(measured.condition_in_s)
    if not apart and not predicts(measured.condition_in_x):
        if means_differ(measured):
            return _in_the_means(measured, excess, "treated and background cells lie together in s")
        if beats_shuffles(measured.condition_in_x) or beats_shuffles(measured.condition_in_s):
            return _weak(measured, structure)
        seen = measured.condition_in_x
        return Finding(
            NAME,
            excess,
            "look",
            "No response found. One blob: treated and background cells lie together in s, and "
            "there may be nothing salient to find. Even on the encoders' input a probe can hardly "
            "tell them apart "
            f"({seen['balanced_accuracy']:.0%} right, chance is {seen['chance']:.0%}). "
            "What s holds is variation that both populations have.",
            NOTHING_TO_FIND,
        )
    if not apart:
        return Finding(
            NAME,
            excess,
            "look",
            "s is used, but background cells lie among the treated ones: a map of all cells is one "
            "blob. The decoder never uses s of background cells, so that only a penalty can keep "
            "them apart. Within the treated cells "
            + (f"there are about {n_groups} groups." if excess > STRUCTURED else "all look alike."),
            f"map only the treated cells; "
            f"{raise_or_add(measured, 'Wasserstein', 'wasserstein_penalty=1')}",
        )
    return Finding(
        NAME,
        excess,
        "look",
        "s separates treated from background cells in part: the two overlap on a map, as they do "
        "where some treated cells have not responded, or where the response is small compared with "
        "the noise of a cell.",
        "more epochs, more genes that respond"
        + ("" if measured.salient_prior == "EscapingPerturbation" else _ESCAPING),
    )


def _weak(measured: Measurements, structure: Structure) -> Finding:
    """Say that treated cells can hardly be told from others, but better than by chance."""
    best = max(
        (measured.condition_in_x, measured.condition_in_s),
        key=lambda found: float(found["balanced_accuracy"]) - float(found["upper_chance"]),
    )
    return Finding(
        NAME,
        structure.excess,
        "look",
        "A weak response, if any: treated and background cells lie together on a map, but a probe "
        f"tells them apart better than shuffled labels ({best['balanced_accuracy']:.0%} right, "
        f"shuffled at most {best['upper_chance']:.0%}).",
        'null_check(), and differential_expression(mode="means"), which averages over cells',
    )


def _in_the_means(measured: Measurements, value: float, where: str) -> Finding:
    """Say that single cells do not show the response that the means of many show."""
    assert measured.genes is not None
    return Finding(
        NAME,
        value,
        "look",
        f"A weak response: {where}, and a probe can hardly tell single cells apart "
        f"({measured.condition_in_x['balanced_accuracy']:.0%} right, chance is "
        f"{measured.condition_in_x['chance']:.0%}), but the mean counts of {measured.genes.found} "
        f"of {measured.genes.tested} genes differ among cells that are alike in z.",
        'differential_expression(mode="means") for these genes, null_check() for what shuffled '
        "conditions would give; more cells, or genes that are known to respond",
    )


def _apart(measured: Measurements, structure: Structure) -> Finding:
    """Say whether treated cells form groups, given that they separate from background cells."""
    excess, n_groups = structure.excess, structure.n_groups
    if excess <= STRUCTURED:
        return Finding(
            NAME,
            excess,
            "good",
            "s carries the condition: treated cells separate from background cells. Among "
            "themselves they form one cloud, so that a map of the treated cells is one blob. Here "
            "that is a finding: the response is there, and differs at most by degree.",
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
            f"{' and '.join(arranged)}, which both conditions share: leakage rather than response.",
            f"{raise_or_add(measured, 'HSIC', 'penalties=[HSIC(30.0)]')}; fewer salient dimensions",
        )
    return Finding(
        NAME,
        excess,
        "good",
        f"No blob: s separates treated from background cells, and the treated cells fall into "
        f"about {n_groups} groups.",
        "differential_expression between these groups",
    )


def _collapsed(measured: Measurements, n_used: int) -> Finding:
    """Say why the salient latent carries no information."""
    error = measured.salient_nats_se
    amount = f"{measured.salient_nats:.1f} nats per treated cell"
    how = (
        "no dimension of s carries information"
        if n_used == 0
        else f"the decoder ignores s: {amount}{f', standard error {error:.1f}' if error else ''}"
    )
    value = measured.salient_nats
    seen, leaked = measured.condition_in_x, measured.condition_in_z
    if not predicts(seen) and means_differ(measured):
        return _in_the_means(measured, value, f"the salient latent has collapsed ({how})")
    if not predicts(seen):
        return Finding(
            NAME,
            value,
            "look",
            f"No response found. One blob: the salient latent has collapsed ({how}). There may be "
            "nothing salient to find: even on the encoders' input, a probe can hardly tell treated "
            "from background "
            f"cells ({seen['balanced_accuracy']:.0%} right, chance is {seen['chance']:.0%}).",
            NOTHING_TO_FIND,
        )
    if predicts(leaked):
        return Finding(
            NAME,
            value,
            "bad",
            f"One blob: the salient latent has collapsed ({how}). The response is in the data, and "
            "went into the background latent: a probe predicts the condition from z "
            f"({leaked['balanced_accuracy']:.0%} right).",
            f"{raise_or_add(measured, 'MMD', 'penalties=[MMD(30.0)]')}, which keeps it out of z"
            f"{separated_preset(measured)}; fewer background dimensions",
        )
    pinned = [
        name for name in ("Wasserstein", "NarrowSalient", "HSIC") if name in measured.penalties
    ]
    less = f"lower the weight of {' and '.join(pinned)}; " if pinned else ""
    return Finding(
        NAME,
        value,
        "bad",
        f"One blob: the salient latent has collapsed ({how}). The condition can be predicted from "
        f"the data ({seen['balanced_accuracy']:.0%} right), but from neither latent: the model has "
        "not found it.",
        f"{less}more epochs; a slower KL warm-up (n_epochs_kl_warmup); another likelihood",
    )
