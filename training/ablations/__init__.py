"""The papers' ablations on the puppets: every row trained from the same base, drawn by the host's sampler, measured from pixels.

A table is a list of settings (`astra`, `one_for_all`, `anystory`, `seal`); how a family is trained and drawn is its study
(`flux_study`, `anystory_study`, `seal_study`). `run` works through a plan and keeps every result, `report` makes tables of them.
"""
