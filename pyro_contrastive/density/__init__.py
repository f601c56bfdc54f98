"""Log-densities of a mini-batch of counts with their gradients, and the ways of computing them.

The mean of a count is the library size times a softmax over genes of the decoder's last layer.
Evaluated layer by layer, that passes over many arrays of [cells, genes], and memory traffic is most
of the cost of a training step. So (zero-inflated) negative binomial likelihoods take the fastest of
three ways that is possible:

==============  ====================================================  ==========================
Way             Taken when                                            Where
==============  ====================================================  ==========================
compiled rows   fused tensors are possible, and: on a CPU, all in     `rows` calls `kernel`,
                float32, one inverse dispersion per gene, at least    which numba compiles
                2^15 entries, and numba works
fused tensors   the heads needed are not evaluated yet, and come      `fused`, called by the
                from plain linear layers; the latents have no axis    distribution of `decoded`
                of draws; Pyro's validation and torch's autocast
                are off
separate heads  otherwise (as when a penalty reads the site           `distributions`, with
                ``scale``)                                            every head as an argument
==============  ====================================================  ==========================

`ways` decides, and logs at level DEBUG which way is taken and why no faster one (``logging`` of
``pyro_contrastive.density.ways``): a message whenever that changes. Fused tensors and separate
heads share the formulas of `counts`. On a CPU these treat the non-zero counts apart, which
`nonzero` finds and `nonzero_counts` evaluates; on other devices both cases are evaluated at every
entry. Second derivatives are those of the textbook formula in `counts`, whatever the way.

All other likelihoods are made from separate heads; `poisson` is the log-density of Poisson counts.
`heads` holds the decoder's heads, each evaluated on first access.
"""
