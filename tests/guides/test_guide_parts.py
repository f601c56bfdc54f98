"""Guides as parts of a model: saving, and what goes with what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from every_guide import OwnProgram
from helpers import make_batch, make_vae
from pyro import poutine
from saved_files import edit_config
from small_model import make, small_adata

from pyro_contrastive import (
    ConditionalGuide,
    ContrastiveGuide,
    ContrastiveVI,
    FlowGuide,
    FullCovarianceGuide,
    LowRankGuide,
    VampPrior,
)


def test_arguments_of_a_guide_are_saved(tmp_path) -> None:
    make(small_adata(), guide=LowRankGuide(rank=4)).save(tmp_path / "a")
    make(small_adata(), guide=FlowGuide(n_flows=3, n_hidden=5)).save(tmp_path / "b")
    assert ContrastiveVI.load(tmp_path / "a").module.guide.rank == 4
    flow = ContrastiveVI.load(tmp_path / "b").module.guide
    assert (flow.n_flows, flow.n_hidden, len(flow.flows["z"])) == (3, 5, 3)


def test_a_guide_of_ones_own_must_be_given_again(tmp_path) -> None:
    model = make(small_adata(), guide=OwnProgram())
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"guide: OwnProgram .* is not a part .*guide=OwnProgram"):
        ContrastiveVI.load(tmp_path / "model")
    with pytest.raises(
        ValueError, match="weights do not fit the model: a likelihood, prior, guide"
    ):
        ContrastiveVI.load(tmp_path / "model", guide=FullCovarianceGuide())
    again = ContrastiveVI.load(tmp_path / "model", adata=model.adata, guide=OwnProgram())
    np.testing.assert_array_equal(
        again.get_latent_representation(), model.get_latent_representation()
    )


def test_models_saved_before_there_was_a_choice_have_the_default(tmp_path) -> None:
    model = make(small_adata())
    model.save(tmp_path / "model")

    def change(config: dict[str, Any]) -> None:
        assert config["components"].pop("guide")["class"] == "pyro_contrastive:ContrastiveGuide"

    edit_config(tmp_path / "model", change)
    loaded = ContrastiveVI.load(tmp_path / "model", adata=model.adata)
    assert type(loaded.module.guide) is ContrastiveGuide
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )


def test_another_program_in_the_place_of_the_guide_cannot_be_saved(tmp_path) -> None:
    model = make(small_adata())
    model.module.guide = torch.nn.Identity()
    with pytest.raises(TypeError, match=r"Identity cannot be saved.*subclass of ContrastiveGuide"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_default_guide_has_the_weights_it_always_had() -> None:
    """Names by which models were saved; other guides add to them."""
    names = {n.partition(".")[0] for n in make_vae(latent_library=True).guide.state_dict()}
    assert names == {"z_encoder", "s_encoder", "library_encoder"}
    full = {n.partition(".")[0] for n in make_vae(guide=FullCovarianceGuide()).guide.state_dict()}
    assert full == {"z_encoder", "s_encoder", "correlations"}


def test_starting_values_of_the_encoders_do_not_depend_on_the_family() -> None:
    guides = []
    for family in (ContrastiveGuide, FullCovarianceGuide, FlowGuide):
        torch.manual_seed(3)
        guides.append(make_vae(guide=family()).guide)
    for guide in guides[1:]:
        for name, value in guides[0].state_dict().items():
            assert torch.equal(guide.state_dict()[name], value)


@pytest.mark.parametrize("family", [FullCovarianceGuide, lambda: LowRankGuide(2), FlowGuide])
def test_families_start_close_to_the_default(family) -> None:
    torch.manual_seed(0)
    vae, batch = make_vae(guide=family()).eval(), make_batch()
    with torch.no_grad():
        trace = poutine.trace(vae.guide).get_trace(batch)
        for site, (mean, variance) in vae.guide.encode(batch).items():
            value = trace.nodes[site]["value"]
            own = trace.nodes[site]["fn"].log_prob(value)
            default = vae.guide.factor(site, mean, variance).log_prob(value)
            assert (own - default).abs().max() < 0.5


def test_a_vamp_prior_of_s_needs_an_encoder_of_counts_alone() -> None:
    batch = make_batch()
    for guide in (FullCovarianceGuide(), FlowGuide()):
        vae = make_vae(guide=guide, salient_prior=VampPrior(12, 3))
        assert vae.objective(vae.model, vae.guide)(batch).isfinite()
    make_vae(guide=ConditionalGuide(), background_prior=VampPrior(12, 3))
    with pytest.raises(ValueError, match="with a ConditionalGuide also z, and then s cannot have"):
        make_vae(guide=ConditionalGuide(), salient_prior=VampPrior(12, 3))
