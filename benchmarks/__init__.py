"""Scripts that measure: `speed/` how fast, `studies/` what is learnt; `frame` and `protocol` are shared."""
