"""Scripts that measure: `speed/` how fast, `studies/` what is learnt.

`frame` is their command line, `protocol` what they share.
"""
